#include "cpu/team.h"

#include <atomic>

#if defined(__linux__)
#include <dlfcn.h>
#include <unistd.h>
#endif

namespace comet {
namespace {

std::atomic<int64_t> owner{0};

// How compilers enter `#pragma omp parallel`. To link another libgomp would start a second team beside torch's, whose
// threads keep their cores busy for milliseconds after each op of torch, waiting for the next.
using EnterTeam = void (*)(void (*work)(void* data), void* data, unsigned threads, unsigned flags);

EnterTeam enter_team() {
#if defined(__linux__)
  static const auto found = reinterpret_cast<EnterTeam>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return getpid() == owner ? found : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace

void allow_team(int64_t process) { owner = process; }

bool has_team() { return enter_team() != nullptr; }

bool run_in_team(void (*work)(void* data), void* data) {
  const EnterTeam enter = enter_team();
  // 0 threads: as many as torch has set. Fewer would make libgomp end the others, and start them again for torch.
  if (enter) enter(work, data, 0, 0);
  return enter != nullptr;
}

}  // namespace comet

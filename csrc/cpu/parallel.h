// Threads for one call: torch's, or else some that start when it begins and are joined before it returns.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/team.h"

namespace comet {

// Calls work(task) for every task in [0, tasks) on up to `threads` threads, this one included. Tasks are handed out as
// threads become free, so results must not depend on who runs which. `work` must not throw.
template <class Work>
void parallel_for(int64_t tasks, int64_t threads, const Work& work) {
  std::atomic<int64_t> next{0}, entered{0};
  const int64_t wanted = std::max<int64_t>(1, std::min(threads, tasks));
  auto run = [&] {
    if (entered++ >= wanted) return;
    for (int64_t task = next++; task < tasks; task = next++) work(task);
  };
  using Run = decltype(run);
  if (wanted == 1) return run();
  if (run_in_team([](void* one) { (*static_cast<Run*>(one))(); }, &run)) return;
  std::vector<std::thread> helpers;
  helpers.reserve(static_cast<size_t>(wanted - 1));
  try {
    for (int64_t i = 1; i < wanted; ++i) helpers.emplace_back(run);
  } catch (const std::system_error&) {
    // The system gives no more threads: those that run share the work.
  }
  run();
  for (auto& helper : helpers) helper.join();
}

}  // namespace comet

// Threads for one call: started when it begins, joined before it returns, so that a fork between calls is harmless.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace comet {

// Calls work(task) for every task in [0, tasks) on up to `threads` threads, this one included. Tasks are handed out as
// threads become free, so results must not depend on who runs which. `work` must not throw.
template <class Work>
void parallel_for(int64_t tasks, int64_t threads, const Work& work) {
  std::atomic<int64_t> next{0};
  const auto run = [&] {
    for (int64_t task = next++; task < tasks; task = next++) work(task);
  };
  std::vector<std::thread> helpers;
  const int64_t wanted = std::min(threads, tasks) - 1;
  if (wanted > 0) helpers.reserve(static_cast<size_t>(wanted));
  try {
    for (int64_t i = 0; i < wanted; ++i) helpers.emplace_back(run);
  } catch (const std::system_error&) {
    // The system gives no more threads: those that run share the work.
  }
  run();
  for (auto& helper : helpers) helper.join();
}

}  // namespace comet

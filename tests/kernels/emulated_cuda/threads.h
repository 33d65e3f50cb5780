// The threads of a block as coroutines.
#pragma once

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1  // what gcc says by itself
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulated {

constexpr size_t STACK_BYTES = 1 << 16;
constexpr size_t WARP = 32;

// A product of small matrices that the warp still has to carry out: this thread's fragments.
struct Product {
  float* sum;
  uint32_t first[4], second[2];
  bool bfloat16;
};

enum class State { READY, AT_WARP, AT_BLOCK, DONE };

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
  State state = State::DONE;
  std::vector<Product> products;
};

inline bool last_thread_first = false;
inline ucontext_t scheduler;
inline Thread* running = nullptr;
inline void (*body)(void*) = nullptr;
inline void* body_arguments = nullptr;
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_stack_bytes = 0;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated CUDA: %s\n", what);
  std::abort();
}

// AddressSanitizer wants to know which stack is in use.
inline void leave_for(const void* stack, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(nullptr, stack, bytes);
#else
  static_cast<void>(stack), static_cast<void>(bytes);
#endif
}
inline void arrive(bool in_thread) {
#if defined(__SANITIZE_ADDRESS__)
  const void* stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
  if (in_thread) scheduler_stack = stack, scheduler_stack_bytes = bytes;
#else
  static_cast<void>(in_thread);
#endif
}

inline void wait_as(State state) {
  Thread* self = running;
  self->state = state;
  leave_for(scheduler_stack, scheduler_stack_bytes);
  swapcontext(&self->context, &scheduler);
  arrive(true);
}

inline void enter() {
  arrive(true);
  body(body_arguments);
  wait_as(State::DONE);
}

void multiply(Thread* warp);

// Runs a warp until all its threads wait for the block or are done; true if any waits.
inline bool run_warp(std::vector<Thread>& threads, size_t first) {
  for (;;) {
    size_t at[4] = {};
    for (size_t i = 0; i < WARP; ++i) {
      const size_t index = first + (last_thread_first ? WARP - 1 - i : i);
      Thread& thread = threads[index];
      if (thread.state == State::READY) {
        threadIdx.x = static_cast<unsigned>(index);
        running = &thread;
        leave_for(thread.stack.get(), STACK_BYTES);
        swapcontext(&scheduler, &thread.context);
        arrive(false);
      }
      ++at[static_cast<int>(thread.state)];
    }
    if (at[static_cast<int>(State::AT_WARP)] == 0) return at[static_cast<int>(State::AT_BLOCK)] > 0;
    if (at[static_cast<int>(State::AT_WARP)] != WARP) fail("threads of a warp wait at different places");
    multiply(&threads[first]);
    for (size_t i = 0; i < WARP; ++i) threads[first + i].state = State::READY;
  }
}

inline void run_block(std::vector<Thread>& threads) {
  for (Thread& thread : threads) {
    thread.state = State::READY;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = STACK_BYTES;
    makecontext(&thread.context, enter, 0);
  }
  const size_t warps = threads.size() / WARP;
  for (bool alive = true; alive;) {
    alive = false;
    for (size_t i = 0; i < warps; ++i) alive |= run_warp(threads, (last_thread_first ? warps - 1 - i : i) * WARP);
    for (Thread& thread : threads)
      if (thread.state == State::AT_BLOCK) thread.state = State::READY;
  }
  for (Thread& thread : threads)
    if (!thread.products.empty()) fail("a product whose sum nobody collected");
}

}  // namespace emulated

inline void __syncthreads() { emulated::wait_as(emulated::State::AT_BLOCK); }

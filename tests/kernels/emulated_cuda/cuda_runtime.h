// As much of CUDA's runtime as csrc's kernels use, on the CPU: cuda.cu compiles as C++ against this header, so that its
// arithmetic, its bounds and its barriers can be checked where there is no GPU.
//
// Blocks run one after another. The threads of a block are coroutines that run until __syncthreads or their end; whether
// the first or the last thread goes first can be chosen, which shows a missing barrier as a different result.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <tuple>
#include <vector>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1  // what gcc says by itself
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)
#define __align__(bytes) __attribute__((aligned(bytes)))

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) float4 {
  float x, y, z, w;
};

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline const char* cudaGetErrorString(cudaError_t) { return "none"; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t count, cudaStream_t) {
  std::memset(to, value, count);
  return cudaSuccess;
}

inline dim3 threadIdx, blockIdx;

namespace emulated {

constexpr size_t STACK_BYTES = 1 << 15;

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
  bool done = false;
};

inline bool last_thread_first = false;
inline ucontext_t scheduler;
inline Thread* running = nullptr;
inline void (*body)(void*) = nullptr;
inline void* body_arguments = nullptr;
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_stack_bytes = 0;

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

inline void back_to_scheduler() {
  Thread* self = running;
  leave_for(scheduler_stack, scheduler_stack_bytes);
  swapcontext(&self->context, &scheduler);
  arrive(true);
}

inline void enter() {
  arrive(true);
  body(body_arguments);
  running->done = true;
  back_to_scheduler();
}

inline void run_block(std::vector<Thread>& threads) {
  for (Thread& thread : threads) {
    thread.done = false;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = STACK_BYTES;
    makecontext(&thread.context, enter, 0);
  }
  for (size_t alive = threads.size(); alive > 0;) {
    alive = 0;
    for (size_t i = 0; i < threads.size(); ++i) {
      const size_t index = last_thread_first ? threads.size() - 1 - i : i;
      if (threads[index].done) continue;
      threadIdx.x = static_cast<unsigned>(index);
      running = &threads[index];
      leave_for(running->stack.get(), STACK_BYTES);
      swapcontext(&scheduler, &running->context);
      arrive(false);
      alive += threads[index].done ? 0 : 1;
    }
  }
}

}  // namespace emulated

inline void __syncthreads() { emulated::back_to_scheduler(); }

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  using Call = std::pair<void (*)(Parameters...), std::tuple<Parameters...>>;
  Call call{kernel, {arguments...}};
  emulated::body = [](void* given) { std::apply(static_cast<Call*>(given)->first, static_cast<Call*>(given)->second); };
  emulated::body_arguments = &call;
  static std::vector<emulated::Thread> threads;
  if (threads.size() != config->blockDim.x) threads = std::vector<emulated::Thread>(config->blockDim.x);
  for (unsigned block = 0; block < config->gridDim.x; ++block) {
    blockIdx.x = block;
    emulated::run_block(threads);
  }
  return cudaSuccess;
}

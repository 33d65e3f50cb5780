// As much of CUDA's runtime as csrc's kernels use, on the CPU: the .cu files compile as C++ against this header, so
// that their arithmetic, their bounds, their barriers and the layout of their fragments can be checked where there is
// no GPU.
//
// Blocks run one after another. The threads of a block are coroutines that run until __syncthreads or their end, warp
// by warp; whether the first or the last thread goes first can be chosen, which shows a missing barrier as a different
// result. Products by a whole warp are carried out when all its threads ask for their sums.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define COMET_EMULATED_CUDA
#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
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

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};

inline uint32_t __float_as_uint(float number) {
  uint32_t word;
  std::memcpy(&word, &number, 4);
  return word;
}
inline float __uint_as_float(uint32_t word) {
  float number;
  std::memcpy(&number, &word, 4);
  return number;
}

inline dim3 threadIdx, blockIdx;

#include "runtime_calls.h"
#include "threads.h"
#include "warps.h"

// What only the machine itself can do: products of small matrices by a whole warp, rounding, shared memory of a size
// chosen at launch. Where CUDA is emulated, cuda_runtime.h of the emulation defines the same functions.
//
// A fragment is the part of a small matrix that one thread of the warp holds. With g = lane / 4 and t = lane % 4, in
// words of 32 bits (one tf32 number, or two bfloat16 numbers that follow each other along the inner sum):
//
//     first  [16 rows][8 words]:     word 0 (g, t)    1 (g + 8, t)    2 (g, t + 4)    3 (g + 8, t + 4)
//     second [8 columns][8 words]:   word 0 (g, t)    1 (g, t + 4)
//     sum    [16 rows][8 columns]:   0 (g, 2t)    1 (g, 2t + 1)    2 (g + 8, 2t)    3 (g + 8, 2t + 1)
//
// Source: PTX ISA, "Matrix Fragments for mma.m16n8k8" (.tf32) and "mma.m16n8k16" (.bf16).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#ifndef COMET_EMULATED_CUDA
namespace comet {

// The sums may be read after collect_sums().
__device__ __forceinline__ void multiply_tf32(float (&sum)[4], const uint32_t (&first)[4],
                                              const uint32_t (&second)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(first[0]), "r"(first[1]), "r"(first[2]), "r"(first[3]), "r"(second[0]), "r"(second[1]));
}

__device__ __forceinline__ void multiply_bfloat16(float (&sum)[4], const uint32_t (&first)[4],
                                                  const uint32_t (&second)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(first[0]), "r"(first[1]), "r"(first[2]), "r"(first[3]), "r"(second[0]), "r"(second[1]));
}

// Nothing to wait for: mma.sync leaves its sums in registers.
__device__ __forceinline__ void collect_sums() {}

__device__ __forceinline__ uint32_t round_to_tf32(float number) {
  uint32_t word;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(number));
  return word;
}

// The first number in the lower half.
__device__ __forceinline__ uint32_t round_to_bfloat16(float first, float second) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}

__device__ __forceinline__ uint32_t* dynamic_shared_memory() {
  extern __shared__ __align__(16) uint32_t memory[];
  return memory;
}

}  // namespace comet
#endif

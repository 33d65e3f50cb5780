// What cuda_machine.cuh asks of the machine: rounding, and products by a warp from the fragments that PTX describes.
#pragma once

#include "threads.h"

namespace emulated {

inline float tf32(uint32_t word) {
  if (word & 0x1fffu && !std::isnan(__uint_as_float(word))) fail("a factor that is not rounded to tf32");
  return __uint_as_float(word);
}
inline float bfloat16(uint32_t word, int half) { return __uint_as_float(half ? word & 0xffff0000u : word << 16); }

// What lane 4 g + t holds (PTX ISA, mma.m16n8k8 with .tf32): first a0 (g, t), a1 (g + 8, t), a2 (g, t + 4), a3 (g + 8,
// t + 4); second b0 (t, g), b1 (t + 4, g); sum c0 (g, 2t), c1 (g, 2t + 1), c2 (g + 8, 2t), c3 (g + 8, 2t + 1).
// (mma.m16n8k16 with .bf16): a0, a1 (g, 2t + {0, 1}), a2, a3 (g + 8, 2t + {0, 1}), a4, a5 (g, 2t + 8 + {0, 1}), a6, a7
// (g + 8, 2t + 8 + {0, 1}); b0, b1 (2t + {0, 1}, g), b2, b3 (2t + 8 + {0, 1}, g).
inline void multiply_one(Thread* warp, size_t index) {
  float first[16][16] = {}, second[16][8] = {};
  const bool halves = warp[0].products[index].bfloat16;
  const int depth = halves ? 16 : 8;
  for (int lane = 0; lane < 32; ++lane) {
    const Product& product = warp[lane].products[index];
    const int g = lane / 4, t = lane % 4;
    for (int e = 0; e < (halves ? 8 : 4); ++e) {
      if (halves)
        first[g + e / 2 % 2 * 8][2 * t + e / 4 * 8 + e % 2] = bfloat16(product.first[e / 2], e % 2);
      else
        first[g + e % 2 * 8][t + e / 2 * 4] = tf32(product.first[e]);
    }
    for (int e = 0; e < (halves ? 4 : 2); ++e) {
      if (halves)
        second[2 * t + e / 2 * 8 + e % 2][g] = bfloat16(product.second[e / 2], e % 2);
      else
        second[t + e * 4][g] = tf32(product.second[e]);
    }
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int e = 0; e < 4; ++e) {
      const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
      float& sum = warp[lane].products[index].sum[e];
      for (int p = 0; p < depth; ++p) sum += first[row][p] * second[p][column];
    }
}

inline void multiply(Thread* warp) {
  const size_t count = warp[0].products.size();
  for (size_t lane = 0; lane < WARP; ++lane)
    if (warp[lane].products.size() != count) fail("threads of a warp take part in different products");
  for (size_t index = 0; index < count; ++index) multiply_one(warp, index);
  for (size_t lane = 0; lane < WARP; ++lane) warp[lane].products.clear();
}

}  // namespace emulated

namespace comet {

inline void multiply_tf32(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulated::running->products.push_back({sum, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}, false});
}
inline void multiply_bfloat16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulated::running->products.push_back({sum, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}, true});
}
inline void collect_sums() { emulated::wait_as(emulated::State::AT_WARP); }

// To nearest, ties away from zero.
inline uint32_t round_to_tf32(float number) {
  const uint32_t word = __float_as_uint(number);
  return std::isfinite(number) ? (word + 0x1000u) & ~0x1fffu : word;
}
// To nearest, ties to even.
inline uint32_t round_to_bfloat16(float number) {
  const uint32_t word = __float_as_uint(number);
  if (std::isnan(number)) return word >> 16 | 0x40u;
  return std::isinf(number) ? word >> 16 : (word + 0x7fffu + (word >> 16 & 1u)) >> 16;
}
inline uint32_t round_to_bfloat16(float first, float second) {
  return round_to_bfloat16(first) | round_to_bfloat16(second) << 16;
}

inline uint32_t* dynamic_shared_memory() { return reinterpret_cast<uint32_t*>(emulated::shared_memory); }

}  // namespace comet

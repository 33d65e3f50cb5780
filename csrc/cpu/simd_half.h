// bfloat16 and float16 to and from float32, rounding to nearest even.
#pragma once

#include "cpu/dtype.h"
#include "cpu/simd.h"

namespace comet::COMET_ISA {

COMET_INLINE float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

COMET_INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

COMET_INLINE float widen_float16(uint16_t half) {
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fff) << 13;
  // Shifted into place the exponent is 112 too small; the product also makes subnormal halves normal.
  const uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7f800000u;
  return float_of((magnitude >= 0x0f800000u ? special : finite) |
                  (static_cast<uint32_t>(half & 0x8000) << 16));
}

COMET_INLINE uint16_t narrow_float16(float x) {
  const uint32_t bits = bits_of(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  const uint32_t nan_or_infinity = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  // Below 2⁻¹⁴ the grid of halves is fixed: adding 0.5 lets the float32 addition round to it.
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t half = magnitude >= 0x477ff000u   ? nan_or_infinity
                        : magnitude < 0x38800000u ? subnormal
                                                  : normal;
  return static_cast<uint16_t>(sign | half);
}

COMET_INLINE uint16_t narrow_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

COMET_INLINE void widen(const uint16_t* from, Dtype dtype, int64_t count, float* to) {
  int64_t j = 0;
  if (dtype == Dtype::bfloat16) {
    for (; j < count; ++j) to[j] = float_of(static_cast<uint32_t>(from[j]) << 16);
    return;
  }
#if defined(__AVX512F__)
  for (; j + 16 <= count; j += 16)
    _mm512_storeu_ps(to + j, _mm512_cvtph_ps(_mm256_loadu_si256(
                                 reinterpret_cast<const __m256i*>(from + j))));
#elif defined(__F16C__)
  for (; j + 8 <= count; j += 8)
    _mm256_storeu_ps(to + j,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + j))));
#endif
  for (; j < count; ++j) to[j] = widen_float16(from[j]);
}

COMET_INLINE void narrow(const float* from, Dtype dtype, int64_t count, uint16_t* to) {
  int64_t j = 0;
  if (dtype == Dtype::bfloat16) {
    for (; j < count; ++j) to[j] = narrow_bfloat16(from[j]);
    return;
  }
#if defined(__AVX512F__)
  for (; j + 16 <= count; j += 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + j),
                        _mm512_cvtps_ph(_mm512_loadu_ps(from + j), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  for (; j + 8 <= count; j += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + j),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + j), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; j < count; ++j) to[j] = narrow_float16(from[j]);
}

}  // namespace comet::COMET_ISA

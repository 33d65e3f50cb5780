// Vectors of float as wide as the instruction set of this translation unit.
//
// Files that include this are compiled once per instruction set, with COMET_ISA naming the namespace that keeps the
// copies apart. They must not use inline functions of the standard library: the linker keeps one copy of those, which
// might be one with instructions that the processor lacks.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef COMET_ISA
#error "COMET_ISA must name the instruction set this file is compiled for: plain, avx2 or avx512"
#endif

#if defined(__clang__)
#define COMET_UNROLL _Pragma("clang loop unroll(full)")
#else
#define COMET_UNROLL _Pragma("GCC unroll 32")
#endif
#define COMET_INLINE inline __attribute__((always_inline))

namespace comet::COMET_ISA {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef uint32_t Bits __attribute__((vector_size(LANES * 4)));

COMET_INLINE Vec splat(float x) { return x - Vec{}; }

COMET_INLINE Vec load(const float* from) {
  Vec v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

COMET_INLINE void store(float* to, Vec v) { __builtin_memcpy(to, &v, sizeof v); }

// The first `count` < LANES numbers, the rest filled.
COMET_INLINE Vec load_first(const float* from, int64_t count, float fill) {
#if defined(__AVX512F__)
  const __mmask16 first = static_cast<__mmask16>((1u << count) - 1);
  return reinterpret_cast<Vec>(_mm512_mask_loadu_ps(_mm512_set1_ps(fill), first, from));
#else
  float copy[LANES];
  for (int i = 0; i < LANES; ++i) copy[i] = fill;
  for (int i = 0; i < LANES; ++i)
    if (i < count) copy[i] = from[i];
  return load(copy);
#endif
}

COMET_INLINE void store_first(float* to, int64_t count, Vec v) {
#if defined(__AVX512F__)
  const __mmask16 first = static_cast<__mmask16>((1u << count) - 1);
  _mm512_mask_storeu_ps(to, first, reinterpret_cast<__m512>(v));
#else
  float copy[LANES];
  store(copy, v);
  for (int i = 0; i < LANES; ++i)
    if (i < count) to[i] = copy[i];
#endif
}

// Past the caches where the processor can; `to` must be aligned to the vector.
COMET_INLINE void store_past_cache(float* to, Vec v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, reinterpret_cast<__m512>(v));
#elif defined(__AVX2__)
  _mm256_stream_ps(to, reinterpret_cast<__m256>(v));
#else
  store(to, v);
#endif
}

COMET_INLINE void finish_stores_past_cache() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// a · b + c with one rounding where the processor can. Compilers are told not to fuse anything else: some results rely on
// a product being rounded first.
COMET_INLINE Vec fused(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b),
                                               reinterpret_cast<__m512>(c)));
#elif defined(__AVX2__)
  return reinterpret_cast<Vec>(_mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b),
                                               reinterpret_cast<__m256>(c)));
#elif defined(__aarch64__)
  return reinterpret_cast<Vec>(vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a),
                                         reinterpret_cast<float32x4_t>(b)));
#else
  return a * b + c;
#endif
}

// b where either is NaN.
COMET_INLINE Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(
      _mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<Vec>(
      _mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#else
  return a > b ? a : b;
#endif
}

COMET_INLINE float largest_lane(Vec v) {
  float lanes[LANES], largest = -__builtin_inff();
  store(lanes, v);
  for (int i = 0; i < LANES; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest;
}

COMET_INLINE double sum_of_lanes(Vec v) {
  float lanes[LANES];
  store(lanes, v);
  double sum = 0;
  for (int i = 0; i < LANES; ++i) sum += static_cast<double>(lanes[i]);
  return sum;
}

// Whether every lane is less than `bound` in size; false where one is NaN.
COMET_INLINE bool all_within(Vec v, float bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(_mm512_abs_ps(reinterpret_cast<__m512>(v)), _mm512_set1_ps(bound), _CMP_LT_OQ) == 0xffff;
#elif defined(__AVX2__)
  const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), reinterpret_cast<__m256>(v));
  return _mm256_movemask_ps(_mm256_cmp_ps(size, _mm256_set1_ps(bound), _CMP_LT_OQ)) == 0xff;
#else
  float lanes[LANES];
  store(lanes, v);
  bool all = true;
  for (int i = 0; i < LANES; ++i) all &= lanes[i] < bound && lanes[i] > -bound;
  return all;
#endif
}

// e^x − 1 within ±NEAR_ZERO, every digit of it: x + x²/2! + x³/3! + x⁴/4!.
constexpr float NEAR_ZERO = 0.0625f;
COMET_INLINE Vec exp_less_one(Vec x) {
  Vec p = splat(1.0f / 24);
  p = fused(p, x, splat(1.0f / 6));
  p = fused(p, x, splat(0.5f));
  return fused(p * x, x, x);
}

// e^x for x ≤ 0 within 1 ulp; 0 below −87.33, where float32 has no normal numbers left; NaN for NaN.
// e^x = 2^n e^r with n = round(x / ln 2), |r| ≤ ln(2)/2, and a minimax polynomial of degree 6 for e^r.
COMET_INLINE Vec exp_of_nonpositive(Vec x) {
  constexpr float LOWEST = -87.33654f;
  constexpr float ROUND = 12582912.0f;  // 1.5 · 2²³: adding it leaves the rounded number in the lowest bits
  const Vec clamped = larger(splat(LOWEST), x);
  const Vec shifted = fused(clamped, splat(1.44269504f), splat(ROUND));
  const Vec n = shifted - splat(ROUND);
  Vec r = fused(n, splat(-0.693359375f), clamped);  // ln 2 in two parts: the first product is exact
  r = fused(n, splat(2.12194440e-4f), r);
  Vec p = splat(0.0013814467238262296f);
  p = fused(p, r, splat(0.008368780836462975f));
  p = fused(p, r, splat(0.04166839271783829f));
  p = fused(p, r, splat(0.1666651964187622f));
  p = fused(p, r, splat(0.4999999403953552f));
  p = fused(p, r, splat(1.0f));
  p = fused(p, r, splat(1.0f));
  const Bits power = (reinterpret_cast<Bits>(shifted) << 23) + (127u << 23);
  p = p * reinterpret_cast<Vec>(power);
  return x < splat(LOWEST) ? Vec{} : p;
}

}  // namespace comet::COMET_ISA

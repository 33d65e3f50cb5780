#include "softened_kl/cpu_blocks.h"

#include "cpu/simd.h"
#include "cpu/simd_half.h"

namespace comet::COMET_ISA {
namespace {

constexpr float INFINITE = __builtin_inff();

// The block as float32 with its bias: where it lies, or made in `room`.
COMET_INLINE const float* as_float(const KlColumns& side, int64_t count, float* room) {
  const float* logits = room;
  if (side.dtype == Dtype::float32)
    logits = static_cast<const float*>(side.logits);
  else
    widen(static_cast<const uint16_t*>(side.logits), side.dtype, count, room);
  if (!side.bias) return logits;
  for (int64_t j = 0; j < count; ++j) room[j] = logits[j] + side.bias[j];
  return room;
}

COMET_INLINE float largest(const float* x, int64_t count) {
  Vec a = splat(-INFINITE), b = a, c = a, d = a;
  int64_t j = 0;
  for (; j + 4 * LANES <= count; j += 4 * LANES) {
    a = larger(a, load(x + j));
    b = larger(b, load(x + j + LANES));
    c = larger(c, load(x + j + 2 * LANES));
    d = larger(d, load(x + j + 3 * LANES));
  }
  for (; j + LANES <= count; j += LANES) a = larger(a, load(x + j));
  if (j < count) b = larger(b, load_first(x + j, count - j, -INFINITE));
  return largest_lane(larger(larger(a, b), larger(c, d)));
}

struct Sums {
  Vec student = {}, teacher = {}, first = {}, second = {}, third = {};

  COMET_INLINE void add(Vec s, Vec t, Vec s_offset, Vec t_offset, Vec inverse_temperature) {
    const Vec s_scaled = (s - s_offset) * inverse_temperature;
    const Vec t_scaled = (t - t_offset) * inverse_temperature;
    const Vec mass = exp_of_nonpositive(t_scaled);
    student += exp_of_nonpositive(s_scaled);
    teacher += mass;
    // Where the teacher has no mass the difference may be ∞ or NaN; the terms are 0 there.
    const Vec x = mass > Vec{} ? s_scaled - t_scaled : Vec{};
    const Vec mass_x = mass * x, mass_xx = mass_x * x;
    first += mass_x;
    second += mass_xx;
    third = fused(mass_xx, x, third);
  }
};

KlSums forward(KlColumns student, KlColumns teacher, int64_t count, float inverse_temperature) {
  float student_room[KL_BLOCK], teacher_room[KL_BLOCK];
  const float* s = as_float(student, count, student_room);
  const float* t = as_float(teacher, count, teacher_room);
  const float s_max = largest(s, count), t_max = largest(t, count);
  // −∞ − −∞ is NaN: a block of −∞ is measured from 0 instead.
  const Vec s_offset = splat(s_max == -INFINITE ? 0.0f : s_max);
  const Vec t_offset = splat(t_max == -INFINITE ? 0.0f : t_max);
  const Vec inverse = splat(inverse_temperature);
  Sums even, odd;
  int64_t j = 0;
  for (; j + 2 * LANES <= count; j += 2 * LANES) {
    even.add(load(s + j), load(t + j), s_offset, t_offset, inverse);
    odd.add(load(s + j + LANES), load(t + j + LANES), s_offset, t_offset, inverse);
  }
  for (; j < count; j += LANES) {
    const int64_t left = count - j;
    const bool whole = left >= LANES;
    even.add(whole ? load(s + j) : load_first(s + j, left, -INFINITE),
             whole ? load(t + j) : load_first(t + j, left, -INFINITE), s_offset, t_offset, inverse);
  }
  return {s_max,
          t_max,
          sum_of_lanes(even.student + odd.student),
          sum_of_lanes(even.teacher + odd.teacher),
          sum_of_lanes(even.first + odd.first),
          sum_of_lanes(even.second + odd.second),
          sum_of_lanes(even.third + odd.third)};
}

struct Slope {
  Vec inverse_temperature, student_max, difference, teacher_max, student_log_sum, teacher_log_sum, factor;

  // Measured from the largest logit before anything is rounded at the logits' own size: nearby logits differ exactly,
  // and a distribution with one certain outcome gets exactly 1 for it. Where q = p e^y with small y, q − p is
  // p (e^y − 1): the difference of two rounded exponentials would have no digits left.
  COMET_INLINE Vec at(Vec s, Vec t) const {
    const Vec s_scaled = (s - student_max) * inverse_temperature, t_scaled = (t - teacher_max) * inverse_temperature;
    const Vec y = (s_scaled - t_scaled) - difference;
    const Vec p = exp_of_nonpositive(t_scaled - teacher_log_sum);
    const Vec small = p * exp_less_one(y);
    if (all_within(y, NEAR_ZERO)) return factor * small;
    const Vec large = exp_of_nonpositive(s_scaled - student_log_sum) - p;
    return factor * ((y < splat(NEAR_ZERO)) & (y > splat(-NEAR_ZERO)) ? small : large);
  }
};

COMET_INLINE void gradient_of(const Slope& slope, const float* s, const float* t, float* g,
                              int64_t count, bool past_cache) {
  int64_t j = 0;
  const auto some = [&](int64_t number) {
    store_first(g + j, number, slope.at(load_first(s + j, number, 0), load_first(t + j, number, 0)));
    j += number;
  };
  if (past_cache) {
    const auto misplaced = static_cast<int64_t>((reinterpret_cast<uintptr_t>(g) / 4) % LANES);
    const int64_t head = misplaced ? LANES - misplaced : 0;
    if (head && head <= count) some(head);
    for (; j + LANES <= count; j += LANES)
      store_past_cache(g + j, slope.at(load(s + j), load(t + j)));
    finish_stores_past_cache();
  } else {
    for (; j + LANES <= count; j += LANES) store(g + j, slope.at(load(s + j), load(t + j)));
  }
  if (j < count) some(count - j);
}

void backward(KlColumns student, KlColumns teacher, void* gradient, Dtype gradient_dtype, int64_t count,
              float inverse_temperature, KlStatistics statistics, float factor, bool past_cache) {
  float student_room[KL_BLOCK], teacher_room[KL_BLOCK], gradient_room[KL_BLOCK];
  const float* s = as_float(student, count, student_room);
  const float* t = as_float(teacher, count, teacher_room);
  const Slope slope{splat(inverse_temperature),
                    splat(statistics.student_max),
                    splat(statistics.difference),
                    splat(statistics.teacher_max),
                    splat(statistics.teacher_log_sum + statistics.difference),
                    splat(statistics.teacher_log_sum),
                    splat(factor)};
  if (gradient_dtype == Dtype::float32) {
    gradient_of(slope, s, t, static_cast<float*>(gradient), count, past_cache);
  } else {
    gradient_of(slope, s, t, gradient_room, count, false);
    narrow(gradient_room, gradient_dtype, count, static_cast<uint16_t*>(gradient));
  }
}

}  // namespace

SoftenedKlBlocks softened_kl_blocks() { return {forward, backward}; }

}  // namespace comet::COMET_ISA

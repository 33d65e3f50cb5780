#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "cpu/parallel.h"
#include "softened_kl/cpu_blocks.h"
#include "softened_kl/softened_kl.h"

namespace comet {
namespace {

// Columns that one task takes. Fixed, so that the order of summation, and with it every bit of the result, is the same
// whatever the number of threads.
constexpr int64_t SEGMENT = 8 * KL_BLOCK;

// Below this many logits a further thread costs more than it saves.
constexpr int64_t LOGITS_PER_THREAD = 1 << 15;

// Gradients beyond the caches are written past them: reading the old contents first would cost half as much again.
constexpr int64_t PAST_CACHE_BYTES = 4 << 20;

KlColumns at(const Logits& logits, int64_t row, int64_t column) {
  const char* data =
      static_cast<const char*>(logits.data) + (row * logits.stride + column) * bytes_of(logits.dtype);
  return {data, logits.dtype, logits.bias ? logits.bias + column : nullptr};
}

int64_t useful_threads(const SoftenedKlRows& rows, int64_t threads) {
  return std::min(threads, rows.n * rows.v / LOGITS_PER_THREAD + 1);
}

bool counts(const SoftenedKlRows& rows, int64_t row) { return !rows.mask || rows.mask[row]; }

constexpr KlSums NOTHING = {-std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity(), 0, 0, 0, 0, 0};

// A KL below NEAR is taken from its series where the two differ by no more than the rounding of single sums.
constexpr double NEAR = 5e-4;
constexpr double ROUNDING = 5e-7;

// Both sums measured from the larger of the two maxima: Σ e^t shrinks by e^((max t − max t')/T), and every x moves by
// ((max s − max s') − (max t − max t')) / T.
KlSums merge(const KlSums& a, const KlSums& b, double inverse_temperature) {
  KlSums both = {std::max(a.student_max, b.student_max), std::max(a.teacher_max, b.teacher_max), 0, 0, 0, 0, 0};
  const auto shift = [&](float from, float to) {
    const bool empty = from == -std::numeric_limits<float>::infinity();
    return empty ? 0.0 : (static_cast<double>(from) - to) * inverse_temperature;
  };
  for (const KlSums* part : {&a, &b}) {
    const double student_shift = shift(part->student_max, both.student_max);
    const double teacher_shift = shift(part->teacher_max, both.teacher_max);
    const double shrink = std::exp(teacher_shift);
    both.student_sum += std::exp(student_shift) * part->student_sum;
    both.teacher_sum += shrink * part->teacher_sum;
    // Mass that vanishes beside the rest weighs nothing, even where the student says −∞.
    if (!(shrink > 0 || part->teacher_sum != part->teacher_sum)) continue;
    const double moved = student_shift - teacher_shift;
    both.first += shrink * (part->first + moved * part->teacher_sum);
    both.second += shrink * (part->second + moved * (2 * part->first + moved * part->teacher_sum));
    both.third += shrink * (part->third + moved * (3 * part->second + moved * (3 * part->first + moved * part->teacher_sum)));
  }
  return both;
}

struct Divergence {
  double kl;
  double difference;  // of the log-sums
};

// KL = log E[e^x] − E[x] over the teacher's distribution. Near 0 that is the rounding of two numbers that cancel, but its
// series in the cumulants of x, κ₂/2! + κ₃/3! + …, consists of small numbers.
Divergence divergence(const KlSums& sums) {
  const double mean = sums.first / sums.teacher_sum;
  const double second = sums.second / sums.teacher_sum, third = sums.third / sums.teacher_sum;
  const double difference = std::log(sums.student_sum) - std::log(sums.teacher_sum);
  const double direct = difference - mean;
  const double series = (second - mean * mean) / 2 + (third - mean * (3 * second - 2 * mean * mean)) / 6;
  if (direct < NEAR && std::fabs(direct - series) < ROUNDING) {
    const double kl = series > 0 ? series : 0;
    return {kl, mean + kl};
  }
  return {direct < 0 ? 0 : direct, difference};
}

KlSums sum_segment(const SoftenedKlBlocks& blocks, const SoftenedKlRows& rows, int64_t row,
                   int64_t begin, int64_t end) {
  const float inverse = 1.0f / rows.temperature[row];
  KlSums sums = NOTHING;
  for (int64_t column = begin; column < end; column += KL_BLOCK) {
    const int64_t count = std::min(KL_BLOCK, end - column);
    const KlSums block =
        blocks.forward(at(rows.student, row, column), at(rows.teacher, row, column), count, inverse);
    sums = merge(sums, block, inverse);
  }
  return sums;
}

}  // namespace

SoftenedKlBlocks softened_kl_blocks(InstructionSet set) {
#ifdef COMET_X86
  if (set == InstructionSet::avx512) return avx512::softened_kl_blocks();
  if (set == InstructionSet::avx2) return avx2::softened_kl_blocks();
#else
  static_cast<void>(set);
#endif
  return plain::softened_kl_blocks();
}

void softened_kl_forward(const SoftenedKlRows& rows, float* kl, float* statistics, int64_t threads) {
  if (rows.n <= 0) return;
  if (rows.v <= 0) throw std::invalid_argument("v: expected at least one column");
  const SoftenedKlBlocks blocks = softened_kl_blocks(best_instruction_set());
  const int64_t segments = (rows.v + SEGMENT - 1) / SEGMENT;
  std::vector<KlSums> parts(static_cast<size_t>(rows.n * segments));
  parallel_for(rows.n * segments, useful_threads(rows, threads), [&](int64_t task) {
    const int64_t row = task / segments, begin = task % segments * SEGMENT;
    if (counts(rows, row))
      parts[static_cast<size_t>(task)] =
          sum_segment(blocks, rows, row, begin, std::min(rows.v, begin + SEGMENT));
  });
  const auto keep = [&](int64_t row, const KlStatistics& found) {
    statistics[row] = found.student_max;
    statistics[rows.n + row] = found.difference;
    statistics[2 * rows.n + row] = found.teacher_max;
    statistics[3 * rows.n + row] = found.teacher_log_sum;
  };
  for (int64_t row = 0; row < rows.n; ++row) {
    kl[row] = 0;
    keep(row, {0, 0, 0, 0});
    if (!counts(rows, row)) continue;
    const double temperature = rows.temperature[row];
    const float inverse = 1.0f / rows.temperature[row];
    KlSums sums = NOTHING;
    for (int64_t i = 0; i < segments; ++i)
      sums = merge(sums, parts[static_cast<size_t>(row * segments + i)], inverse);
    const Divergence found = divergence(sums);
    kl[row] = static_cast<float>(temperature * temperature * found.kl);
    keep(row, {sums.student_max, static_cast<float>(found.difference), sums.teacher_max,
               static_cast<float>(std::log(sums.teacher_sum))});
  }
}

void softened_kl_backward(const SoftenedKlRows& rows, const float* scale, const float* statistics,
                          void* gradient, int64_t gradient_stride, Dtype gradient_dtype,
                          int64_t threads) {
  if (rows.n <= 0) return;
  const SoftenedKlBlocks blocks = softened_kl_blocks(best_instruction_set());
  const int64_t segments = (rows.v + SEGMENT - 1) / SEGMENT;
  const int64_t width = bytes_of(gradient_dtype);
  const bool past_cache =
      gradient != rows.student.data && rows.n * rows.v * width >= PAST_CACHE_BYTES;
  parallel_for(rows.n * segments, useful_threads(rows, threads), [&](int64_t task) {
    const int64_t row = task / segments, begin = task % segments * SEGMENT;
    const int64_t end = std::min(rows.v, begin + SEGMENT);
    char* target = static_cast<char*>(gradient) + (row * gradient_stride) * width;
    if (!counts(rows, row)) {
      std::memset(target + begin * width, 0, static_cast<size_t>((end - begin) * width));
      return;
    }
    const float temperature = rows.temperature[row];
    const KlStatistics found = {statistics[row], statistics[rows.n + row], statistics[2 * rows.n + row],
                                statistics[3 * rows.n + row]};
    for (int64_t column = begin; column < end; column += KL_BLOCK)
      blocks.backward(at(rows.student, row, column), at(rows.teacher, row, column), target + column * width,
                      gradient_dtype, std::min(KL_BLOCK, end - column), 1.0f / temperature, found,
                      scale[row] * temperature, past_cache);
  });
}

}  // namespace comet

// What happens to one block of a row: cpu_blocks.cpp is compiled once for each instruction set.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/instruction_set.h"

namespace comet {

// Sums over a block of columns relative to its own maxima: teacher e^t stands for exp((t − max t) / T), and x for
// ((s − max s) − (t − max t)) / T, counting 0 where e^t is 0; maxima of −∞ count as 0.
struct KlSums {
  float student_max;
  float teacher_max;
  double student_sum;  // Σ e^s
  double teacher_sum;  // Σ e^t
  double first;        // Σ e^t x
  double second;       // Σ e^t x²
  double third;        // Σ e^t x³
};

// Of a row: log Σ e^(t/T) = teacher_max / T + teacher_log_sum, and log Σ e^(s/T) = student_max / T + teacher_log_sum +
// difference. Where the two sides nearly agree, two log-sums would leave no digits of their difference.
struct KlStatistics {
  float student_max;
  float difference;
  float teacher_max;
  float teacher_log_sum;
};

// One side of a block of a row.
struct KlColumns {
  const void* logits;
  Dtype dtype;
  const float* bias;  // added to the logits; or null
};

struct SoftenedKlBlocks {
  // At most KL_BLOCK columns.
  KlSums (*forward)(KlColumns student, KlColumns teacher, int64_t count, float inverse_temperature);
  void (*backward)(KlColumns student, KlColumns teacher, void* gradient, Dtype gradient_dtype, int64_t count,
                   float inverse_temperature, KlStatistics statistics, float factor, bool past_cache);
};

// Two blocks of float32 fill half of a 32 KiB first-level cache: the second look at a block costs no memory traffic.
constexpr int64_t KL_BLOCK = 2048;

namespace plain {
SoftenedKlBlocks softened_kl_blocks();
}
namespace avx2 {
SoftenedKlBlocks softened_kl_blocks();
}
namespace avx512 {
SoftenedKlBlocks softened_kl_blocks();
}

SoftenedKlBlocks softened_kl_blocks(InstructionSet set);

}  // namespace comet

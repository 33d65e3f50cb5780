// What happens to one block of a row: cpu_blocks.cpp is compiled once for each instruction set.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/instruction_set.h"

namespace comet {

// Sums over a block of columns relative to its own maxima: teacher e^t stands for exp((t − max t) / T).
struct KlSums {
  float student_max;
  float teacher_max;
  double student_sum;  // Σ e^s
  double teacher_sum;  // Σ e^t
  double weighted;     // Σ e^t ((t − max t) − (s − max s)) / T, counting 0 where e^t is 0; maxima of −∞ count as 0
};

// Of one side of a row: log Σ e^(x/T) = max / T + log_sum.
struct LogSumExp {
  float max;
  float log_sum;
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
                   float inverse_temperature, LogSumExp student_lse, LogSumExp teacher_lse, float factor,
                   bool past_cache);
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

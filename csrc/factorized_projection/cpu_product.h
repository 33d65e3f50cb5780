// Matrix products on one thread: cpu_product.cpp is compiled once for each instruction set.
#pragma once

#include <cstdint>

#include "cpu/instruction_set.h"

namespace comet {

// A rows × depth matrix; one of the strides is 1.
struct LeftFactor {
  const float* data;
  int64_t row_stride;
  int64_t depth_stride;
};

// c[i, j] = Σ_p a[i, p] b[p, j], added to what c holds if `add`. Rows of b and c are dense, with the given strides. The
// order of summation depends on `depth` alone: computing some of the rows or all of them gives the same bits.
using Multiply = void (*)(int64_t rows, int64_t columns, int64_t depth, LeftFactor a, const float* b, int64_t b_stride,
                          float* c, int64_t c_stride, bool add);

namespace plain {
Multiply multiplication();
}
namespace avx2 {
Multiply multiplication();
}
namespace avx512 {
Multiply multiplication();
}

Multiply multiplication(InstructionSet set);

}  // namespace comet

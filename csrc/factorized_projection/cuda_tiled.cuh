// Sums of single products, for maps of any size: a block owns 64 × 128 numbers of one result.
#pragma once

#include "factorized_projection/cuda_results.cuh"
#include "factorized_projection/cuda_tiles.cuh"

namespace comet {

// result[outer, inner][i, j] = Σ_step Σ_p x[outer, inner, step][i, p] y[outer, inner, step][j, p]
struct Products {
  Factor x, y;
  Result result;
  Difference difference;
  int size;            // rows, columns and depth of every matrix
  int64_t outers;      // how many values `outer` takes
  int64_t inners;      // how many values `inner` takes
  int64_t steps;       // how many values `step` takes ...
  int64_t steps_left;  // ... counted over all values of `outer`: the last may have fewer
};

// Blocks for one matrix of size × size.
int64_t blocks_of_products(int64_t size);

void launch_products(const Products& products, int precision, void* stream);

}  // namespace comet

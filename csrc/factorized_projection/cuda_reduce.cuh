// The sums over samples that end a call: numbers of real tokens, the loss, and gradients of the factors from their
// parts.
#pragma once

#include "factorized_projection/cuda_results.cuh"

namespace comet {

// squared[b] = n_b², n_b the number of real tokens of sample b.
void launch_square_lengths(const uint8_t* mask, int64_t batch, int64_t size, double* squared, void* stream);

// loss = Σ squares / positions
void launch_mean(const float* squares, int64_t count, const Positions& positions, float* loss, void* stream);

// gradient[k, i, j] = Σ_set parts[set, k, i, j] within the leading corner, 0 beyond it; for left and right, either
// null.
struct Sets {
  const float *left_parts, *right_parts;
  float *left_gradient, *right_gradient;
  int64_t sets, terms, size, max_size;
  bool go_on;  // whether to add to what the gradient holds
};

void launch_add_sets(const Sets& sets, void* stream);

}  // namespace comet

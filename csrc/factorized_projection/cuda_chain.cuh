// Sums of chains of two products, for maps that one block can hold a strip of: S ≤ 128.
//
// Every product of the projection and of its gradients is one of four chains (K terms k, samples b; D the gradient of
// P(A)):
//
//     P(A)_b = Σ_k (L_k A_b) R_kᵀ        dA_b = Σ_k (L_kᵀ D_b) R_k
//     dL_k   = Σ_b (D_b R_k) A_bᵀ        dR_k = Σ_b (D_bᵀ L_k) A_b
//
//     result[i, j] = Σ_step Σ_q strip[i, q] z[step][j, q],    strip[i, q] = Σ_p x[step][i, p] y[q, p]
//
// A block owns 64 rows of a result and all its columns. For each step it makes the strip, 64 × S, in shared memory and
// multiplies it on: nothing of the size of K maps is ever written. In all four chains y is the same for all steps.
#pragma once

#include "factorized_projection/cuda_results.cuh"
#include "factorized_projection/cuda_tiles.cuh"

namespace comet {

struct Chain {
  Factor x, y, z;
  Result result;
  Difference difference;
  int64_t inners;      // how many values `inner` takes
  int64_t steps;       // how many values `step` takes ...
  int64_t steps_left;  // ... counted over all values of `outer`: the last may have fewer
};

constexpr int MOST_CHAINS = 3;

// Chains of one launch; blocks up to ends[0] work on the first, up to ends[1] on the second, and so on.
struct Chains {
  Chain chains[MOST_CHAINS];
  int64_t ends[MOST_CHAINS];
  int size;
};

constexpr int64_t CHAIN_LARGEST_SIZE = COLUMNS;

void launch_chains(const Chains& chains, int precision, void* stream);

}  // namespace comet

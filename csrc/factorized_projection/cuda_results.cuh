// Where a block leaves its result: as it is, or as the difference to the teacher's map and its squared sum.
#pragma once

#include "factorized_projection/cuda_products.cuh"

namespace comet {

// Matrices [outer, inner][row][column], columns dense.
struct Result {
  float* data;  // null: not wanted
  int64_t outer, inner;
  int64_t pitch;
};

// The number of real positions, Σ_b n_b², at least 1: divisor of the loss.
struct Positions {
  const double* squared_lengths;  // n_b² of every sample, or null without a mask
  int64_t batch;
  double whole;  // their sum without a mask
};

// What makes D = 2 (P(A) − T) / Σ n_b² and the squared error of P(A).
struct Difference {
  const float* teacher;  // of the first sample; null: the result is kept as it is
  const uint8_t* mask;   // of the first sample, or null
  float* squares;        // one for each block
  Positions positions;
};

// Σ over the block of one number a thread, in a fixed order, for every thread. `room` holds THREADS numbers.
template <int THREADS>
__device__ double sum_of_block(double mine, double* room) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  room[thread] = mine;
  __syncthreads();
  for (int half = THREADS / 2; half > 0; half /= 2) {
    if (thread < half) room[thread] += room[thread + half];
    __syncthreads();
  }
  return room[0];
}

template <int THREADS>
__device__ double count(const Positions& positions, double* room) {
  double total = positions.whole;
  if (positions.squared_lengths) {
    double mine = 0;
    for (int64_t i = threadIdx.x; i < positions.batch; i += THREADS) mine += positions.squared_lengths[i];
    total = sum_of_block<THREADS>(mine, room);
  }
  return total > 1.0 ? total : 1.0;
}

// The block's numbers begin at (first_row, first_column) of one size × size matrix; `memory` is shared and free to use.
template <class P>
__device__ __forceinline__ void write(typename P::Sums& sums, const typename P::Where& where, const Result& result,
                                      const Difference& difference, int64_t outer, int64_t inner, int first_row,
                                      int first_column, int size, uint32_t* memory) {
  float* to = result.data ? result.data + outer * result.outer + inner * result.inner : nullptr;
  if (!difference.teacher) {
    sums.for_each(where, [=](int row, int column, float number) {
      row += first_row, column += first_column;
      if (row < size && column < size) to[row * result.pitch + column] = number;
    });
    return;
  }
  double* room = reinterpret_cast<double*>(memory);
  const float scale = static_cast<float>(2.0 / count<P::THREADS>(difference.positions, room));
  const float* teacher = difference.teacher + outer * size * size;
  const uint8_t* mask = difference.mask ? difference.mask + outer * size : nullptr;
  float squares = 0.0f;
  sums.for_each(where, [=, &squares](int row, int column, float number) {
    row += first_row, column += first_column;
    if (row >= size || column >= size) return;
    const bool real = !mask || (mask[row] && mask[column]);
    const float missed = real ? number - teacher[row * static_cast<int64_t>(size) + column] : 0.0f;
    squares += missed * missed;
    if (to) to[row * result.pitch + column] = missed * scale;
  });
  const double sum = sum_of_block<P::THREADS>(squares, room);
  if (threadIdx.x == 0) difference.squares[blockIdx.x] = static_cast<float>(sum);
}

}  // namespace comet

#include "factorized_projection/cuda_reduce.cuh"

#include "factorized_projection/cuda_launch.cuh"

namespace comet {
namespace {

constexpr int THREADS = 256;

// One block for each sample.
__global__ void __launch_bounds__(THREADS) square_lengths(const uint8_t* mask, int64_t size, double* squared) {
  __shared__ double room[THREADS];
  const int64_t sample = blockIdx.x;
  double real = 0;
  for (int64_t i = threadIdx.x; i < size; i += THREADS) real += mask[sample * size + i] ? 1.0 : 0.0;
  real = sum_of_block<THREADS>(real, room);
  if (threadIdx.x == 0) squared[sample] = real * real;
}

// One block.
__global__ void __launch_bounds__(THREADS) mean_of_squares(const float* squares, int64_t number,
                                                           const Positions positions, float* loss) {
  __shared__ double room[THREADS];
  const double divisor = count<THREADS>(positions, room);
  double mine = 0;
  for (int64_t i = threadIdx.x; i < number; i += THREADS) mine += squares[i];
  const double sum = sum_of_block<THREADS>(mine, room);
  if (threadIdx.x == 0) *loss = static_cast<float>(sum / divisor);
}

// One thread for each number of both gradients.
__global__ void __launch_bounds__(THREADS) add_sets(const Sets sets) {
  const int64_t corner = sets.max_size * sets.max_size, count = sets.terms * corner;
  const int64_t square = sets.size * sets.size;
  int64_t index = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
  const bool left = sets.left_gradient && index < count;
  if (sets.left_gradient && !left) index -= count;
  float* gradient = left ? sets.left_gradient : sets.right_gradient;
  if (index >= count || !gradient) return;
  const float* parts = left ? sets.left_parts : sets.right_parts;
  const int64_t k = index / corner, i = index % corner / sets.max_size, j = index % sets.max_size;
  float sum = 0.0f;
  if (i < sets.size && j < sets.size)
    for (int64_t set = 0; set < sets.sets; ++set)
      sum += parts[(set * sets.terms + k) * square + i * sets.size + j];
  gradient[index] = sets.go_on ? gradient[index] + sum : sum;
}

}  // namespace

void launch_square_lengths(const uint8_t* mask, int64_t batch, int64_t size, double* squared, void* stream) {
  launch(square_lengths, batch, THREADS, 0, stream, mask, size, squared);
}

void launch_mean(const float* squares, int64_t count, const Positions& positions, float* loss, void* stream) {
  launch(mean_of_squares, 1, THREADS, 0, stream, squares, count, positions, loss);
}

void launch_add_sets(const Sets& sets, void* stream) {
  const int64_t gradients = (sets.left_gradient ? 1 : 0) + (sets.right_gradient ? 1 : 0);
  const int64_t count = gradients * sets.terms * sets.max_size * sets.max_size;
  launch(add_sets, ceil_div(count, THREADS), THREADS, 0, stream, sets);
}

}  // namespace comet

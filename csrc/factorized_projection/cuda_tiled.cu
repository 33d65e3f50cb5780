#include "factorized_projection/cuda_tiled.cuh"

#include "factorized_projection/cuda_launch.cuh"
#include "factorized_projection/factorized_projection.h"

namespace comet {
namespace {

template <class P>
struct Memory {
  static constexpr int PITCH = pitch_of(P::DEPTH / P::PER_WORD);
  static constexpr int BUFFER = (ROWS + COLUMNS) * PITCH;
  static constexpr int64_t BYTES = 4 * 2 * BUFFER;
};

// Adds up all steps. One barrier for each tile, as in the chains.
template <class P, bool X_ALONG_DEPTH, bool Y_ALONG_DEPTH>
__device__ __forceinline__ void add_products(typename P::Sums& sums, const typename P::Where& where,
                                             const Products& products, int64_t outer, int64_t inner, int first_row,
                                             int first_column, uint32_t* memory) {
  using M = Memory<P>;
  const int64_t left = products.steps_left - outer * products.steps;
  const float *x = products.x.of(outer, inner), *y = products.y.of(outer, inner);
  Staged<P, ROWS> first;
  Staged<P, COLUMNS> second;
  const auto fetch = [&](int depth) {
    first.template fetch<X_ALONG_DEPTH>(products.x, x, first_row, depth, products.size);
    second.template fetch<Y_ALONG_DEPTH>(products.y, y, first_column, depth, products.size);
  };
  sums.clear();
  fetch(0);
  int64_t steps = left < products.steps ? left : products.steps;
  int depth = 0;
  for (bool odd = false; steps > 0; odd = !odd) {
    uint32_t* tile = memory + (odd ? M::BUFFER : 0);
    first.template put<X_ALONG_DEPTH, M::PITCH>(tile);
    second.template put<Y_ALONG_DEPTH, M::PITCH>(tile + ROWS * M::PITCH);
    depth += P::DEPTH;
    if (depth >= products.size) {
      depth = 0;
      --steps;
      x += products.x.step, y += products.y.step;
    }
    if (steps > 0) fetch(depth);
    __syncthreads();
    if (where.used) sums.template multiply<M::PITCH, M::PITCH>(where, tile, tile + ROWS * M::PITCH);
  }
}

template <class P>
__global__ void __launch_bounds__(P::THREADS) sum_products(const __grid_constant__ Products products) {
  uint32_t* memory = dynamic_shared_memory();
  const int size = products.size, down = (size + ROWS - 1) / ROWS, across = (size + COLUMNS - 1) / COLUMNS;
  const int64_t matrix = blockIdx.x / (down * across);
  const int tile = static_cast<int>(blockIdx.x - matrix * (down * across));
  const int first_row = tile / across * ROWS, first_column = tile % across * COLUMNS;
  const int64_t inner = matrix % products.inners, outer = matrix / products.inners;

  typename P::Sums sums;
  const typename P::Where where(size - first_row, size - first_column);
  if (!products.x.along_depth)
    add_products<P, false, false>(sums, where, products, outer, inner, first_row, first_column, memory);
  else if (products.y.along_depth)
    add_products<P, true, true>(sums, where, products, outer, inner, first_row, first_column, memory);
  else
    add_products<P, true, false>(sums, where, products, outer, inner, first_row, first_column, memory);
  write<P>(sums, where, products.result, products.difference, outer, inner, first_row, first_column, size, memory);
}

template <class P>
void launch_as(const Products& products, void* stream) {
  static_assert(Memory<P>::BYTES <= 99 * 1024, "what devices of compute capability 8.6, 8.9 and 12.0 give a block");
  launch(sum_products<P>, products.outers * products.inners * blocks_of_products(products.size), P::THREADS,
         Memory<P>::BYTES, stream, products);
}

}  // namespace

int64_t blocks_of_products(int64_t size) { return ceil_div(size, ROWS) * ceil_div(size, COLUMNS); }

void launch_products(const Products& products, int precision, void* stream) {
  if (precision == IN_BFLOAT16)
    launch_as<Bfloat16>(products, stream);
  else if (precision == IN_TF32)
    launch_as<Tf32>(products, stream);
  else
    launch_as<Float32>(products, stream);
}

}  // namespace comet

#include "factorized_projection/cuda_chain.cuh"

#include "factorized_projection/cuda_launch.cuh"
#include "factorized_projection/factorized_projection.h"

namespace comet {
namespace {

// The layout of a block's shared memory, in words: strip, two buffers of tiles, and y as a whole where it is resident:
// read once for all steps instead of once for each.
template <class P, bool RESIDENT>
struct Memory {
  static constexpr int TILE_PITCH = pitch_of(P::DEPTH / P::PER_WORD);
  static constexpr int WHOLE_PITCH = pitch_of(COLUMNS / P::PER_WORD);
  static constexpr int STRIP = ROWS * WHOLE_PITCH;
  static constexpr int BUFFER = (RESIDENT ? COLUMNS : ROWS + COLUMNS) * TILE_PITCH;
  static constexpr int WHOLE = RESIDENT ? COLUMNS * WHOLE_PITCH : 0;
  static constexpr int64_t BYTES = 4 * (STRIP + 2 * BUFFER + WHOLE);
};

// ALONG_DEPTH: x and z; in all chains they lie alike in memory, and y lies along the tile index.
template <class P, bool RESIDENT, bool ALONG_DEPTH>
class Block {
  using M = Memory<P, RESIDENT>;
  using Sums = typename P::Sums;
  using Where = typename P::Where;

 public:
  __device__ __forceinline__ Block(const Chain& chain, const Where& where, int first_row, int size, uint32_t* memory)
      : chain(chain),
        where(where),
        first_row(first_row),
        size(size),
        strip(memory),
        buffers(memory + M::STRIP),
        whole(memory + M::STRIP + 2 * M::BUFFER) {}

  // Every tile takes one barrier: it separates writing a buffer from reading it, and the buffer written next was read
  // before the barrier of the tile between.
  __device__ __forceinline__ void add(Sums& sums, int64_t outer, int64_t inner) {
    const int64_t left = chain.steps_left - outer * chain.steps;
    x = chain.x.of(outer, inner), y = chain.y.of(outer, inner), z = chain.z.of(outer, inner);
    sums.clear();
    if (RESIDENT) read_y();
    fetch_x(0);
    for (int64_t steps = left < chain.steps ? left : chain.steps; steps > 0; --steps) {
      make_strip();
      x += chain.x.step;
      for (int depth = 0; depth < size; depth += P::DEPTH) {
        uint32_t* tile = next_buffer();
        second.template put<ALONG_DEPTH, M::TILE_PITCH>(tile);
        if (depth + P::DEPTH < size)
          second.template fetch<ALONG_DEPTH>(chain.z, z, 0, depth + P::DEPTH, size);
        else if (steps > 1)
          fetch_x(0);
        __syncthreads();
        if (where.used)
          sums.template multiply<M::WHOLE_PITCH, M::TILE_PITCH>(where, strip + depth / P::PER_WORD, tile);
      }
      z += chain.z.step;
    }
  }

 private:
  __device__ __forceinline__ void make_strip() {
    Sums sums;
    sums.clear();
    for (int depth = 0; depth < size; depth += P::DEPTH) {
      uint32_t* tile = next_buffer();
      first.template put<ALONG_DEPTH, M::TILE_PITCH>(tile);
      if (!RESIDENT) second.template put<false, M::TILE_PITCH>(tile + ROWS * M::TILE_PITCH);
      if (depth + P::DEPTH < size)
        fetch_x(depth + P::DEPTH);
      else
        second.template fetch<ALONG_DEPTH>(chain.z, z, 0, 0, size);
      __syncthreads();
      if (!where.used) continue;
      if (RESIDENT)
        sums.template multiply<M::TILE_PITCH, M::WHOLE_PITCH>(where, tile, whole + depth / P::PER_WORD);
      else
        sums.template multiply<M::TILE_PITCH, M::TILE_PITCH>(where, tile, tile + ROWS * M::TILE_PITCH);
    }
    sums.template keep<M::WHOLE_PITCH>(where, strip, size);
  }

  __device__ __forceinline__ void fetch_x(int depth) {
    first.template fetch<ALONG_DEPTH>(chain.x, x, first_row, depth, size);
    if (!RESIDENT) second.template fetch<false>(chain.y, y, 0, depth, size);
  }

  __device__ __forceinline__ void read_y() {
    for (int depth = 0; depth < size; depth += P::DEPTH) {
      second.template fetch<false>(chain.y, y, 0, depth, size);
      second.template put<false, M::WHOLE_PITCH>(whole + depth / P::PER_WORD);
    }
  }

  __device__ __forceinline__ uint32_t* next_buffer() {
    odd = !odd;
    return buffers + (odd ? M::BUFFER : 0);
  }

  const Chain& chain;
  const Where& where;
  const int first_row, size;
  uint32_t *strip, *buffers, *whole;
  bool odd = false;
  const float *x, *y, *z;  // the matrices of this step
  Staged<P, ROWS> first;
  Staged<P, COLUMNS> second;
};

template <class P, bool RESIDENT>
__global__ void __launch_bounds__(P::THREADS) sum_chains(const __grid_constant__ Chains chains) {
  uint32_t* memory = dynamic_shared_memory();
  int which = 0;
  while (blockIdx.x >= chains.ends[which]) ++which;
  const Chain& chain = chains.chains[which];
  const int64_t index = blockIdx.x - (which ? chains.ends[which - 1] : 0);
  const int size = chains.size, strips = (size + ROWS - 1) / ROWS, first_row = static_cast<int>(index % strips) * ROWS;
  const int64_t inner = index / strips % chain.inners, outer = index / strips / chain.inners;

  typename P::Sums sums;
  const typename P::Where where(size - first_row, size);
  if (chain.x.along_depth)
    Block<P, RESIDENT, true>(chain, where, first_row, size, memory).add(sums, outer, inner);
  else
    Block<P, RESIDENT, false>(chain, where, first_row, size, memory).add(sums, outer, inner);
  write<P>(sums, where, chain.result, chain.difference, outer, inner, first_row, 0, size, memory);
}

template <class P, bool RESIDENT>
void launch_as(const Chains& chains, void* stream) {
  launch(sum_chains<P, RESIDENT>, chains.ends[MOST_CHAINS - 1], P::THREADS, Memory<P, RESIDENT>::BYTES, stream, chains);
}

}  // namespace

// What needs no choice runs everywhere: devices of compute capability 8.6, 8.9 and 12.0 give a block 99 KiB.
void launch_chains(const Chains& chains, int precision, void* stream) {
  static_assert(Memory<Float32, false>::BYTES <= 99 * 1024 && Memory<Tf32, false>::BYTES <= 99 * 1024 &&
                    Memory<Bfloat16, true>::BYTES <= 99 * 1024,
                "99 KiB");
  if (precision == IN_BFLOAT16)
    launch_as<Bfloat16, true>(chains, stream);
  else if (precision == IN_FLOAT32)
    launch_as<Float32, false>(chains, stream);
  else if (Memory<Tf32, true>::BYTES <= shared_memory_limit())
    launch_as<Tf32, true>(chains, stream);
  else
    launch_as<Tf32, false>(chains, stream);
}

}  // namespace comet

// How factors come from global memory into tiles: first into registers, while the tile before is multiplied, then
// rounded into shared memory.
#pragma once

#include <type_traits>

#include "factorized_projection/cuda_products.cuh"

namespace comet {

// Matrices X[outer, inner, step][tile index][depth]: the tile index counts rows of the result for the first factor,
// columns for the second; the depth runs along the inner sum.
struct Factor {
  const float* data;
  int64_t outer, inner, step;  // from one matrix to the next
  int pitch;                   // from one row in memory to the next
  bool along_depth;            // whether depth is the dense index in memory, or the tile index is
  bool by_four;                // whether four numbers that begin at a multiple of four can be read at once

  __device__ const float* of(int64_t outer_index, int64_t inner_index) const {
    return data + outer_index * outer + inner_index * inner;
  }
};

// What one thread holds of a tile on its way: four numbers along depth each.
template <class P, int TILE>
struct Staged {
  static constexpr int COUNT = TILE * P::DEPTH / 4 / P::THREADS;
  static constexpr int FOURS = P::DEPTH / 4;  // along the depth of the tile
  static_assert(COUNT * P::THREADS == TILE * FOURS, "every thread has the same share");
  static_assert(P::THREADS % TILE == 0 && P::THREADS % FOURS == 0, "a thread's share lies along one index");
  float4 fours[COUNT];

  // Neighbouring threads read neighbouring numbers, whichever way the matrix lies; beyond `size` there are zeros.
  template <bool ALONG_DEPTH>
  __device__ __forceinline__ void fetch(const Factor& factor, const float* matrix, int first, int depth, int size) {
    const int t = first + tile_index<ALONG_DEPTH>(), d = depth + depth_index<ALONG_DEPTH>();
    const int64_t pitch = factor.pitch;
    const float* from = matrix + (ALONG_DEPTH ? t : d) * pitch + (ALONG_DEPTH ? d : t);
#pragma unroll
    for (int e = 0; e < COUNT; ++e) {
      if (ALONG_DEPTH) {
        const int left = t + e * (P::THREADS / FOURS) < size ? size - d : 0;
        if (factor.by_four && left > 3)
          fours[e] = *reinterpret_cast<const float4*>(from);
        else
          fours[e] = {left > 0 ? from[0] : 0.0f, left > 1 ? from[1] : 0.0f, left > 2 ? from[2] : 0.0f,
                      left > 3 ? from[3] : 0.0f};
        from += P::THREADS / FOURS * pitch;
      } else {
        const int left = t < size ? size - d - e * (P::THREADS / TILE * 4) : 0;
        fours[e] = {left > 0 ? from[0] : 0.0f, left > 1 ? from[pitch] : 0.0f, left > 2 ? from[2 * pitch] : 0.0f,
                    left > 3 ? from[3 * pitch] : 0.0f};
        from += P::THREADS / TILE * 4 * pitch;
      }
    }
  }

  template <bool ALONG_DEPTH, int PITCH>
  __device__ __forceinline__ void put(uint32_t* tile) const {
    constexpr int NEXT = ALONG_DEPTH ? P::THREADS / FOURS * PITCH : P::THREADS / TILE * 4 / P::PER_WORD;
    tile += tile_index<ALONG_DEPTH>() * PITCH + depth_index<ALONG_DEPTH>() / P::PER_WORD;
#pragma unroll
    for (int e = 0; e < COUNT; ++e) {
      const auto words = P::words(fours[e]);
      *reinterpret_cast<std::remove_const_t<decltype(words)>*>(tile + e * NEXT) = words;
    }
  }

 private:
  template <bool ALONG_DEPTH>
  static __device__ __forceinline__ int tile_index() {
    return static_cast<int>(ALONG_DEPTH ? threadIdx.x / FOURS : threadIdx.x % TILE);
  }
  template <bool ALONG_DEPTH>
  static __device__ __forceinline__ int depth_index() {
    return static_cast<int>(ALONG_DEPTH ? threadIdx.x % FOURS : threadIdx.x / TILE) * 4;
  }
};

}  // namespace comet

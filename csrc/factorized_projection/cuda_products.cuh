// Products of tiles that lie in shared memory, in three precisions. The sums are float32 in all of them.
//
//     Float32    every product and sum in float32, on the FMA units
//     Tf32       factors rounded to 11 bits of mantissa, on tensor cores
//     Bfloat16   factors rounded to 8 bits of mantissa, on tensor cores
//
// A tile holds words of 32 bits, [tile index][depth], the depth along the inner sum: Float32 and Tf32 one number a
// word, Bfloat16 two. Rows of tiles lie 4 (mod 8) words apart, so that the reads below hit every bank once.
#pragma once

#include "factorized_projection/cuda_machine.cuh"

namespace comet {

constexpr int ROWS = 64;      // of the result of a block
constexpr int COLUMNS = 128;  // of the result of a block
constexpr int PADDING = 4;    // words after each row of a tile

constexpr int pitch_of(int words) { return words + PADDING; }

// Where a warp's part of the result of a block begins, and whether any of it lies within `rows` × `columns`.
template <int WARP_ROWS, int WARP_COLUMNS>
struct Place {
  int row, column, lane;
  bool used;

  __device__ Place(int64_t rows, int64_t columns) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    lane = static_cast<int>(threadIdx.x) % 32;
    row = warp / (COLUMNS / WARP_COLUMNS) * WARP_ROWS;
    column = warp % (COLUMNS / WARP_COLUMNS) * WARP_COLUMNS;
    used = row < rows && column < columns;
  }
};

// 4 warps of 32 × 64 numbers; of these a thread owns 8 × 8: rows lane / 8 + 4 i, columns lane % 8 + 8 j.
struct Float32 {
  static constexpr int THREADS = 128;
  static constexpr int DEPTH = 8;
  static constexpr int PER_WORD = 1;
  using Where = Place<32, 64>;

  static __device__ uint4 words(float4 x) {
    return {__float_as_uint(x.x), __float_as_uint(x.y), __float_as_uint(x.z), __float_as_uint(x.w)};
  }

  struct Sums {
    float numbers[8][8];

    __device__ void clear() {
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) numbers[i][j] = 0.0f;
    }

    // += first [ROWS][DEPTH] times second [COLUMNS][DEPTH] turned
    template <int FIRST_PITCH, int SECOND_PITCH>
    __device__ void multiply(const Where& where, const uint32_t* first, const uint32_t* second) {
      first += (where.row + where.lane / 8) * FIRST_PITCH;
      second += (where.column + where.lane % 8) * SECOND_PITCH;
#pragma unroll 1  // two steps at once would take more registers than there are
      for (int d = 0; d < DEPTH; d += 4) {
        float4 x[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = *reinterpret_cast<const float4*>(first + 4 * i * FIRST_PITCH + d);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float4 y = *reinterpret_cast<const float4*>(second + 8 * j * SECOND_PITCH + d);
#pragma unroll
          for (int i = 0; i < 8; ++i) numbers[i][j] = fmaf(x[i].x, y.x, numbers[i][j]);
#pragma unroll
          for (int i = 0; i < 8; ++i) numbers[i][j] = fmaf(x[i].y, y.y, numbers[i][j]);
#pragma unroll
          for (int i = 0; i < 8; ++i) numbers[i][j] = fmaf(x[i].z, y.z, numbers[i][j]);
#pragma unroll
          for (int i = 0; i < 8; ++i) numbers[i][j] = fmaf(x[i].w, y.w, numbers[i][j]);
        }
      }
    }

    // use(row, column, number) for each number of this thread
    template <class Use>
    __device__ void for_each(const Where& where, const Use& use) {
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j)
          use(where.row + where.lane / 8 + 4 * i, where.column + where.lane % 8 + 8 * j, numbers[i][j]);
    }

    // As the first factor of another product: a tile [ROWS][COLUMNS], 0 from column `columns` on.
    template <int PITCH>
    __device__ void keep(const Where& where, uint32_t* tile, int64_t columns) {
      for_each(where, [=](int row, int column, float number) {
        tile[row * PITCH + column] = __float_as_uint(column < columns ? number : 0.0f);
      });
    }
  };
};

// 8 warps of 32 × 32 numbers: 2 × 4 fragments of 16 × 8.
template <class Numbers>
struct TensorCores {
  static constexpr int THREADS = 256;
  static constexpr int DEPTH = 32;
  static constexpr int PER_WORD = Numbers::PER_WORD;
  using Where = Place<32, 32>;

  struct Sums {
    float fragments[2][4][4];

    __device__ void clear() {
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) fragments[i][j][e] = 0.0f;
    }

    template <int FIRST_PITCH, int SECOND_PITCH>
    __device__ void multiply(const Where& where, const uint32_t* first, const uint32_t* second) {
      const int g = where.lane / 4, t = where.lane % 4;
      first += (where.row + g) * FIRST_PITCH + t;
      second += (where.column + g) * SECOND_PITCH + t;
#pragma unroll
      for (int w = 0; w < DEPTH / PER_WORD; w += 8) {
        uint32_t a[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int e = 0; e < 4; ++e) a[i][e] = first[(16 * i + e % 2 * 8) * FIRST_PITCH + w + e / 2 * 4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t* from = second + 8 * j * SECOND_PITCH + w;
          const uint32_t b[2] = {from[0], from[4]};
#pragma unroll
          for (int i = 0; i < 2; ++i) Numbers::multiply(fragments[i][j], a[i], b);
        }
      }
    }

    template <class Use>
    __device__ void for_each(const Where& where, const Use& use) {
      collect_sums();
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            use(where.row + 16 * i + where.lane / 4 + e / 2 * 8, where.column + 8 * j + where.lane % 4 * 2 + e % 2,
                fragments[i][j][e]);
    }

    template <int PITCH>
    __device__ void keep(const Where& where, uint32_t* tile, int64_t columns) {
      collect_sums();
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int row = where.row + 16 * i + 8 * half + where.lane / 4;
            const int column = where.column + 8 * j + where.lane % 4 * 2;
            Numbers::put(tile + row * PITCH + column / PER_WORD, column < columns ? fragments[i][j][2 * half] : 0.0f,
                         column + 1 < columns ? fragments[i][j][2 * half + 1] : 0.0f);
          }
    }
  };
};

struct Tf32Numbers {
  static constexpr int PER_WORD = 1;

  static __device__ void multiply(float (&sum)[4], const uint32_t (&first)[4], const uint32_t (&second)[2]) {
    multiply_tf32(sum, first, second);
  }
  static __device__ void put(uint32_t* words, float first, float second) {
    *reinterpret_cast<uint2*>(words) = {round_to_tf32(first), round_to_tf32(second)};
  }
};

struct Bfloat16Numbers {
  static constexpr int PER_WORD = 2;

  static __device__ void multiply(float (&sum)[4], const uint32_t (&first)[4], const uint32_t (&second)[2]) {
    multiply_bfloat16(sum, first, second);
  }
  static __device__ void put(uint32_t* words, float first, float second) { *words = round_to_bfloat16(first, second); }
};

struct Tf32 : TensorCores<Tf32Numbers> {
  static __device__ uint4 words(float4 x) {
    return {round_to_tf32(x.x), round_to_tf32(x.y), round_to_tf32(x.z), round_to_tf32(x.w)};
  }
};

struct Bfloat16 : TensorCores<Bfloat16Numbers> {
  static __device__ uint2 words(float4 x) { return {round_to_bfloat16(x.x, x.y), round_to_bfloat16(x.z, x.w)}; }
};

}  // namespace comet

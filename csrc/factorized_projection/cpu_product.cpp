#include "factorized_projection/cpu_product.h"

#include "cpu/simd.h"

// The usual three levels (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008): a tile of c
// stays in registers; a strip of b, as wide as the tile, stays in the first-level cache; a panel of a in the second.
namespace comet::COMET_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int TILE_ROWS = 12, TILE_VECTORS = 2;  // 24 of 32 registers hold sums
#else
constexpr int TILE_ROWS = 4, TILE_VECTORS = 3;  // 12 of 16
#endif
constexpr int ROW_STEP = 4;  // tiles have 4, 8 or 12 rows
constexpr int64_t PANEL_ROWS = 144, PANEL_DEPTH = 192;
constexpr int64_t STRIP = TILE_VECTORS * LANES;

COMET_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

struct Tile {
  float* c;
  int64_t stride;
  int64_t rows;
  int64_t columns;
  bool add;
};

COMET_INLINE void write(const Tile& tile, int64_t row, int64_t column, Vec sum) {
  const int64_t count = tile.columns - column;
  float* c = tile.c + row * tile.stride + column;
  if (count >= LANES) {
    store(c, tile.add ? sum + load(c) : sum);
  } else if (count > 0) {
    store_first(c, count, tile.add ? sum + load_first(c, count, 0) : sum);
  }
}

// `a`: ROWS numbers for each step of depth, `b`: VECTORS vectors.
template <int ROWS, int VECTORS>
void multiply_tile(int64_t depth, const float* a, const float* b, const Tile& tile) {
  Vec sums[ROWS][VECTORS] = {};
  for (int64_t p = 0; p < depth; ++p, a += ROWS, b += VECTORS * LANES) {
    Vec right[VECTORS];
    COMET_UNROLL
    for (int v = 0; v < VECTORS; ++v) right[v] = load(b + v * LANES);
    COMET_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      const Vec left = splat(a[i]);
      COMET_UNROLL
      for (int v = 0; v < VECTORS; ++v) sums[i][v] = fused(left, right[v], sums[i][v]);
    }
  }
  COMET_UNROLL
  for (int i = 0; i < ROWS; ++i) {
    if (i >= tile.rows) break;
    COMET_UNROLL
    for (int v = 0; v < VECTORS; ++v) write(tile, i, v * LANES, sums[i][v]);
  }
}

template <int ROWS>
void multiply_tile(int vectors, int64_t depth, const float* a, const float* b, const Tile& tile) {
  if (vectors == 1) return multiply_tile<ROWS, 1>(depth, a, b, tile);
#if !defined(__AVX512F__)
  if (vectors == 3) return multiply_tile<ROWS, 3>(depth, a, b, tile);
#endif
  multiply_tile<ROWS, 2>(depth, a, b, tile);
}

using MultiplyTile = void (*)(int vectors, int64_t depth, const float* a, const float* b, const Tile& tile);

COMET_INLINE MultiplyTile tile_of(int64_t rows) {
#if defined(__AVX512F__)
  if (rows > 8) return multiply_tile<12>;
  if (rows > 4) return multiply_tile<8>;
#endif
  static_cast<void>(rows);
  return multiply_tile<4>;
}

// Four rows of a, four steps of depth: turned so that the four rows of one step lie together.
COMET_INLINE void turn(const float* a, int64_t row_stride, float* to, int64_t to_stride) {
#if defined(__SSE2__)
  __m128 w = _mm_loadu_ps(a), x = _mm_loadu_ps(a + row_stride), y = _mm_loadu_ps(a + 2 * row_stride),
         z = _mm_loadu_ps(a + 3 * row_stride);
  _MM_TRANSPOSE4_PS(w, x, y, z);
  _mm_storeu_ps(to, w);
  _mm_storeu_ps(to + to_stride, x);
  _mm_storeu_ps(to + 2 * to_stride, y);
  _mm_storeu_ps(to + 3 * to_stride, z);
#else
  for (int p = 0; p < 4; ++p)
    for (int i = 0; i < 4; ++i) to[p * to_stride + i] = a[i * row_stride + p];
#endif
}

// `packed` rows of a (those beyond `rows` become 0), next to each other for each step of depth.
COMET_INLINE void pack_rows(int64_t rows, int64_t packed, int64_t depth, LeftFactor a, float* to) {
  int64_t p = 0;
  if (rows == packed && a.row_stride == 1) {
    for (; p < depth; ++p)
      for (int64_t i = 0; i < packed; i += 4)
        __builtin_memcpy(to + p * packed + i, a.data + p * a.depth_stride + i, 4 * sizeof(float));
  } else if (rows == packed && a.depth_stride == 1) {
    for (; p + 4 <= depth; p += 4)
      for (int64_t i = 0; i < packed; i += 4)
        turn(a.data + i * a.row_stride + p, a.row_stride, to + p * packed + i, packed);
  }
  for (; p < depth; ++p)
    for (int64_t i = 0; i < packed; ++i)
      to[p * packed + i] = i < rows ? a.data[i * a.row_stride + p * a.depth_stride] : 0.0f;
}

// Columns of b, at most STRIP, filled with 0 to whole vectors.
COMET_INLINE void pack_strip(int64_t depth, int64_t columns, const float* b, int64_t stride, float* to) {
  for (int64_t p = 0; p < depth; ++p, b += stride) {
    int64_t j = 0;
    for (; j + LANES <= columns; j += LANES, to += LANES) store(to, load(b + j));
    if (j < columns) {
      store(to, load_first(b + j, columns - j, 0));
      to += LANES;
    }
  }
}

void multiply_panel(int64_t rows, int64_t columns, int64_t depth, LeftFactor a, const float* b, int64_t b_stride,
                    float* c, int64_t c_stride, bool add) {
  alignas(64) float panel[PANEL_ROWS * PANEL_DEPTH];
  alignas(64) float strip[STRIP * PANEL_DEPTH];
  const auto packed_rows = [&](int64_t row) {
    return smaller(TILE_ROWS, (rows - row + ROW_STEP - 1) / ROW_STEP * ROW_STEP);
  };
  for (int64_t row = 0; row < rows; row += TILE_ROWS)
    pack_rows(smaller(TILE_ROWS, rows - row), packed_rows(row), depth,
              {a.data + row * a.row_stride, a.row_stride, a.depth_stride}, panel + row * depth);
  for (int64_t column = 0; column < columns; column += STRIP) {
    const int64_t width = smaller(STRIP, columns - column);
    pack_strip(depth, width, b + column, b_stride, strip);
    for (int64_t row = 0; row < rows; row += TILE_ROWS)
      tile_of(packed_rows(row))(static_cast<int>((width + LANES - 1) / LANES), depth, panel + row * depth, strip,
                                {c + row * c_stride + column, c_stride, smaller(TILE_ROWS, rows - row), width, add});
  }
}

void multiply(int64_t rows, int64_t columns, int64_t depth, LeftFactor a, const float* b, int64_t b_stride, float* c,
              int64_t c_stride, bool add) {
  for (int64_t p = 0; p < depth; p += PANEL_DEPTH)
    for (int64_t row = 0; row < rows; row += PANEL_ROWS)
      multiply_panel(smaller(PANEL_ROWS, rows - row), columns, smaller(PANEL_DEPTH, depth - p),
                     {a.data + row * a.row_stride + p * a.depth_stride, a.row_stride, a.depth_stride},
                     b + p * b_stride, b_stride, c + row * c_stride, c_stride, add || p > 0);
}

}  // namespace

Multiply multiplication() { return multiply; }

}  // namespace comet::COMET_ISA

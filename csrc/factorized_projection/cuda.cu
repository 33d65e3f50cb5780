#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "factorized_projection/factorized_projection.h"

// Samples are taken a few at a time, as many as fill the device. For each group of samples, in float32:
//
//     U_k = L_k A      P(A) = Σ_k U_k R_kᵀ, and from it D      G_k = D R_k      dA = Σ_k L_kᵀ G_k
//     dL_k = Σ G_k Aᵀ and dR_k = Σ Dᵀ U_k, in two stages: first over the samples of each of a few sets, then over the sets
//
// Every one of these is a sum of matrix products, so one kernel serves: a block of 256 threads owns 64 × 64 numbers of one
// result. The order of all sums is fixed and no number is added to by two blocks: the same input gives the same bits.
namespace comet {
namespace {

constexpr int TILE = 64;                      // rows and columns of a block's result
constexpr int DEPTH = 16;                     // steps of the inner sum kept in shared memory at a time
constexpr int EACH = 4;                       // each thread owns EACH × EACH numbers
constexpr int SIDE = TILE / EACH;             // threads along a side of the tile
constexpr int THREADS = SIDE * SIDE;          // 256
constexpr int64_t BLOCKS_IN_FLIGHT = 2 * 132; // two for each multiprocessor of an H100; a fixed number keeps results fixed
constexpr int64_t MOST_SETS = 4;

// Matrices X[outer, inner, step][tile index, depth index]: the tile index runs along the result's rows (first factor) or
// columns (second factor), the depth index along the inner sum. One of the last two strides is 1.
struct Factor {
  const float* data;
  int64_t outer, inner, step;
  int64_t along_tile, along_depth;
};

struct Result {
  float* data;
  int64_t outer, inner, row;
};

// result[outer, inner] = Σ_step Σ_p a[outer, inner, step][i, p] b[outer, inner, step][j, p]
struct Products {
  Factor a, b;
  Result result;
  int64_t size;        // rows, columns and depth of every matrix
  int64_t tiles;       // blocks along a side of a matrix
  int64_t inners;      // how many values `inner` takes
  int64_t steps;       // how many values `step` takes ...
  int64_t steps_left;  // ... counted over all values of `outer`: the last may have fewer
};

// What makes D and the squared error of P(A).
struct Difference {
  const float* teacher;     // of the first sample
  const uint8_t* mask;      // of the first sample, or null
  const double* positions;  // Σ n_b², at least 1
  float* squares;           // one for each block
  bool keep;                // whether D is wanted
};

__device__ void load_tile(float (&tile)[DEPTH][TILE + 4], const float* matrix, const Factor& factor, int64_t first,
                          int64_t depth, int64_t size) {
  const int thread = static_cast<int>(threadIdx.x);
  const bool depth_is_dense = factor.along_depth == 1;
#pragma unroll
  for (int e = 0; e < TILE * DEPTH / THREADS; ++e) {
    const int index = thread + e * THREADS;
    // Neighbouring threads read neighbouring numbers, whichever way the matrix lies.
    const int d = depth_is_dense ? index % DEPTH : index / TILE;
    const int t = depth_is_dense ? index / DEPTH : index % TILE;
    const bool inside = first + t < size && depth + d < size;
    tile[d][t] = inside ? matrix[(first + t) * factor.along_tile + (depth + d) * factor.along_depth] : 0.0f;
  }
}

// Σ over the block of one number a thread, in a fixed order; the result is valid in thread 0.
template <class Number>
__device__ Number sum_of_block(Number mine, Number (&room)[THREADS]) {
  const int thread = static_cast<int>(threadIdx.x);
  room[thread] = mine;
  __syncthreads();
  for (int half = THREADS / 2; half > 0; half /= 2) {
    if (thread < half) room[thread] += room[thread + half];
    __syncthreads();
  }
  return room[0];
}

__device__ void accumulate(float (&sums)[EACH][EACH], const Products& products, int64_t outer, int64_t inner,
                           int64_t first_row, int64_t first_column) {
  __shared__ __align__(16) float a_tile[DEPTH][TILE + 4];
  __shared__ __align__(16) float b_tile[DEPTH][TILE + 4];
  const int row = static_cast<int>(threadIdx.x) / SIDE * EACH, column = static_cast<int>(threadIdx.x) % SIDE * EACH;
  const Factor& a = products.a;
  const Factor& b = products.b;
  const int64_t left = products.steps_left - outer * products.steps;
  const int64_t steps = left < products.steps ? left : products.steps;
  for (int64_t step = 0; step < steps; ++step) {
    const float* a_matrix = a.data + outer * a.outer + inner * a.inner + step * a.step;
    const float* b_matrix = b.data + outer * b.outer + inner * b.inner + step * b.step;
    for (int64_t depth = 0; depth < products.size; depth += DEPTH) {
      load_tile(a_tile, a_matrix, a, first_row, depth, products.size);
      load_tile(b_tile, b_matrix, b, first_column, depth, products.size);
      __syncthreads();
#pragma unroll
      for (int d = 0; d < DEPTH; ++d) {
        const float4 x = *reinterpret_cast<const float4*>(&a_tile[d][row]);
        const float4 y = *reinterpret_cast<const float4*>(&b_tile[d][column]);
        const float xs[EACH] = {x.x, x.y, x.z, x.w}, ys[EACH] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int i = 0; i < EACH; ++i)
#pragma unroll
          for (int j = 0; j < EACH; ++j) sums[i][j] += xs[i] * ys[j];
      }
      __syncthreads();
    }
  }
}

template <bool DIFFERENCE>
__global__ void __launch_bounds__(THREADS) sum_of_products(const Products products, const Difference difference) {
  __shared__ float room[THREADS];
  const int64_t tiles = products.tiles, size = products.size, block = blockIdx.x;
  const int64_t outer = block / (tiles * tiles) / products.inners, inner = block / (tiles * tiles) % products.inners;
  const int64_t first_row = block / tiles % tiles * TILE, first_column = block % tiles * TILE;
  float sums[EACH][EACH] = {};
  accumulate(sums, products, outer, inner, first_row, first_column);

  const int64_t row = first_row + static_cast<int>(threadIdx.x) / SIDE * EACH;
  const int64_t column = first_column + static_cast<int>(threadIdx.x) % SIDE * EACH;
  float* result = products.result.data + outer * products.result.outer + inner * products.result.inner;
  const float scale = DIFFERENCE ? static_cast<float>(2.0 / *difference.positions) : 0.0f;
  const uint8_t* mask = DIFFERENCE && difference.mask ? difference.mask + outer * size : nullptr;
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
      if (row + i >= size || column + j >= size) continue;
      float number = sums[i][j];
      if (DIFFERENCE) {
        const bool real = !mask || (mask[row + i] && mask[column + j]);
        number = real ? number - difference.teacher[(outer * size + row + i) * size + column + j] : 0.0f;
        squares += number * number;
        number *= scale;
      }
      if (!DIFFERENCE || difference.keep) result[(row + i) * products.result.row + column + j] = number;
    }
  }
  if (DIFFERENCE) {
    squares = sum_of_block(squares, room);
    if (threadIdx.x == 0) difference.squares[block] = squares;
  }
}

// One block for each sample: n_b², n_b the number of real tokens.
__global__ void __launch_bounds__(THREADS) square_lengths(const uint8_t* mask, int64_t size, double* squared) {
  __shared__ double room[THREADS];
  const int64_t sample = blockIdx.x;
  double real = 0;
  for (int64_t i = threadIdx.x; i < size; i += THREADS) real += mask[sample * size + i] ? 1.0 : 0.0;
  real = sum_of_block(real, room);
  if (threadIdx.x == 0) squared[sample] = real * real;
}

// total = max(1, Σ squared), or max(1, whole) without a mask. One block.
__global__ void __launch_bounds__(THREADS) total_positions(const double* squared, int64_t samples, double whole,
                                                           double* total) {
  __shared__ double room[THREADS];
  double mine = 0;
  if (squared)
    for (int64_t i = threadIdx.x; i < samples; i += THREADS) mine += squared[i];
  const double sum = squared ? sum_of_block(mine, room) : whole;
  if (threadIdx.x == 0) *total = sum > 1.0 ? sum : 1.0;
}

// One block.
__global__ void __launch_bounds__(THREADS) mean_of_squares(const float* squares, int64_t count,
                                                           const double* positions, float* loss) {
  __shared__ double room[THREADS];
  double mine = 0;
  for (int64_t i = threadIdx.x; i < count; i += THREADS) mine += squares[i];
  const double sum = sum_of_block(mine, room);
  if (threadIdx.x == 0) *loss = static_cast<float>(sum / *positions);
}

// gradient[k, i, j] += Σ_set parts[set, k, i, j]
__global__ void __launch_bounds__(THREADS) add_sets(const float* parts, int64_t sets, int64_t terms, int64_t size,
                                                    int64_t max_size, float* gradient) {
  const int64_t square = size * size, count = terms * square;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
  if (index >= count) return;
  float sum = 0.0f;
  for (int64_t set = 0; set < sets; ++set) sum += parts[set * count + index];
  const int64_t k = index / square, i = index % square / size, j = index % size;
  gradient[(k * max_size + i) * max_size + j] += sum;
}

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("factorized_projection: ") + what + ": " + cudaGetErrorString(error));
}

template <class... Parameters>
void launch(void (*kernel)(Parameters...), int64_t blocks, cudaStream_t stream, Parameters... parameters) {
  if (blocks == 0) return;
  if (blocks > 2147483647) throw std::runtime_error("factorized_projection: more blocks than one launch can take");
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(THREADS);
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, parameters...), "launch");
}

// Makes a device the current one for as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before), "cudaGetDevice");
    if (before != device) check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~OnDevice() { cudaSetDevice(before); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before = 0;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How the workspace is laid out, in numbers of 4 bytes.
struct Plan {
  int64_t square, tiles, group, sets, samples_per_set;
  int64_t positions, lengths, squares, d, u, g, left_parts, right_parts, total;

  Plan(int64_t terms, int64_t batch, int64_t size, WantedGradients wanted) {
    square = size * size;
    tiles = ceil_div(size, TILE);
    group = std::min(ceil_div(BLOCKS_IN_FLIGHT, terms * tiles * tiles), std::max<int64_t>(1, batch / 4));
    samples_per_set = std::max<int64_t>(2, ceil_div(group, MOST_SETS));
    sets = ceil_div(group, samples_per_set);
    int64_t used = 0;
    const auto take = [&used](int64_t count) {
      const int64_t offset = used;
      used += ceil_div(count, 4) * 4;
      return offset;
    };
    positions = take(2);
    lengths = take(2 * batch);
    squares = take(batch * tiles * tiles);
    d = take(group * square);
    u = take(group * terms * square);
    g = take(wanted.map || wanted.left ? group * terms * square : 0);
    left_parts = take(wanted.left ? sets * terms * square : 0);
    right_parts = take(wanted.right ? sets * terms * square : 0);
    total = used;
  }
};

class Run {
 public:
  Run(const Projection& projection, const float* map, const ProjectionGradients& gradients, const CudaCall& call)
      : p(projection),
        map(map),
        gradients(gradients),
        plan(p.terms, p.batch, p.size, {gradients.map != nullptr, gradients.left != nullptr, gradients.right != nullptr}),
        stream(static_cast<cudaStream_t>(call.stream)),
        workspace(static_cast<float*>(call.workspace)),
        corner(p.max_size * p.max_size) {
    for (float* gradient : {gradients.left, gradients.right})
      if (gradient)
        check(cudaMemsetAsync(gradient, 0, static_cast<size_t>(p.terms * corner) * sizeof(float), stream), "memset");
  }

  void project(float* output) {
    for_groups([&](int64_t first, int64_t samples) {
      make_u(first, samples);
      make_projection(samples, {output + first * plan.square, plan.square, 0, p.size}, nullptr);
    });
  }

  void differentiate(const float* output_gradient) {
    for_groups([&](int64_t first, int64_t samples) {
      if (gradients.right) make_u(first, samples);
      make_gradients(first, samples, output_gradient + first * plan.square);
    });
  }

  void compare(const float* teacher, const uint8_t* mask, float* loss) {
    double* positions = reinterpret_cast<double*>(workspace + plan.positions);
    double* lengths = reinterpret_cast<double*>(workspace + plan.lengths);
    if (mask) launch(square_lengths, p.batch, stream, mask, p.size, lengths);
    launch(total_positions, 1, stream, static_cast<const double*>(mask ? lengths : nullptr), p.batch,
           static_cast<double>(p.batch) * static_cast<double>(plan.square), positions);
    float* d = workspace + plan.d;
    for_groups([&](int64_t first, int64_t samples) {
      make_u(first, samples);
      const Difference difference = {teacher + first * plan.square, mask ? mask + first * p.size : nullptr, positions,
                                     workspace + plan.squares + first * plan.tiles * plan.tiles, gradients.any()};
      make_projection(samples, {d, plan.square, 0, p.size}, &difference);
      make_gradients(first, samples, d);
    });
    launch(mean_of_squares, 1, stream, static_cast<const float*>(workspace + plan.squares),
           p.batch * plan.tiles * plan.tiles, static_cast<const double*>(positions), loss);
  }

 private:
  template <class Work>
  void for_groups(const Work& work) {
    for (int64_t first = 0; first < p.batch; first += plan.group)
      work(first, std::min(plan.group, p.batch - first));
  }

  // `outers` values of outer; `steps` of step, `all_steps` over all values of outer together.
  void multiply(Factor a, Factor b, Result result, int64_t outers, int64_t inners, int64_t steps, int64_t all_steps,
                const Difference* difference = nullptr) {
    const Products products = {a, b, result, p.size, plan.tiles, inners, steps, all_steps};
    const int64_t blocks = outers * inners * plan.tiles * plan.tiles;
    if (difference)
      launch(sum_of_products<true>, blocks, stream, products, *difference);
    else
      launch(sum_of_products<false>, blocks, stream, products, Difference{});
  }

  void make_u(int64_t first, int64_t samples) {
    multiply({p.left, 0, corner, 0, p.max_size, 1}, {map + first * plan.square, plan.square, 0, 0, 1, p.size},
             {workspace + plan.u, p.terms * plan.square, plan.square, p.size}, samples, p.terms, 1, samples);
  }

  void make_projection(int64_t samples, Result result, const Difference* difference) {
    multiply({workspace + plan.u, p.terms * plan.square, 0, plan.square, p.size, 1},
             {p.right, 0, 0, corner, p.max_size, 1}, result, samples, 1, p.terms, samples * p.terms, difference);
  }

  void make_gradients(int64_t first, int64_t samples, const float* d) {
    const int64_t square = plan.square, size = p.size, terms = p.terms, per_set = plan.samples_per_set;
    const int64_t sets = ceil_div(samples, per_set);
    float* g = workspace + plan.g;
    if (gradients.map || gradients.left)
      multiply({d, square, 0, 0, size, 1}, {p.right, 0, corner, 0, 1, p.max_size}, {g, terms * square, square, size},
               samples, terms, 1, samples);
    if (gradients.map)
      multiply({p.left, 0, 0, corner, 1, p.max_size}, {g, terms * square, 0, square, 1, size},
               {gradients.map + first * square, square, 0, size}, samples, 1, terms, samples * terms);
    if (gradients.left) {
      multiply({g, per_set * terms * square, square, terms * square, size, 1},
               {map + first * square, per_set * square, 0, square, size, 1},
               {workspace + plan.left_parts, terms * square, square, size}, sets, terms, per_set, samples);
      add(workspace + plan.left_parts, sets, gradients.left);
    }
    if (gradients.right) {
      multiply({d, per_set * square, 0, square, 1, size},
               {workspace + plan.u, per_set * terms * square, square, terms * square, 1, size},
               {workspace + plan.right_parts, terms * square, square, size}, sets, terms, per_set, samples);
      add(workspace + plan.right_parts, sets, gradients.right);
    }
  }

  void add(const float* parts, int64_t sets, float* gradient) {
    launch(add_sets, ceil_div(p.terms * plan.square, THREADS), stream, parts, sets, p.terms, p.size, p.max_size,
           gradient);
  }

  const Projection p;
  const float* map;
  const ProjectionGradients gradients;
  const Plan plan;
  cudaStream_t stream;
  float* workspace;
  const int64_t corner;
};

}  // namespace

int64_t cuda_workspace_bytes(int64_t terms, int64_t batch, int64_t size, WantedGradients wanted) {
  return Plan(terms, batch, size, wanted).total * static_cast<int64_t>(sizeof(float));
}

void cuda_factorized_projection_forward(const Projection& projection, const float* map, float* output, CudaCall call) {
  const OnDevice on(call.device);
  Run(projection, map, {}, call).project(output);
}

void cuda_factorized_projection_backward(const Projection& projection, const float* map, const float* output_gradient,
                                         const ProjectionGradients& gradients, CudaCall call) {
  const OnDevice on(call.device);
  Run(projection, map, gradients, call).differentiate(output_gradient);
}

void cuda_projected_mse(const Projection& projection, const float* student_map, const float* teacher_map,
                        const uint8_t* mask, float* loss, const ProjectionGradients& gradients, CudaCall call) {
  const OnDevice on(call.device);
  Run(projection, student_map, gradients, call).compare(teacher_map, mask, loss);
}

}  // namespace comet

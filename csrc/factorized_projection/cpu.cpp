#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "cpu/parallel.h"
#include "factorized_projection/cpu_product.h"
#include "factorized_projection/factorized_projection.h"

// Samples are taken a few at a time. For each group of samples there are two rounds of tasks, each task owning some rows
// of what it writes, so that no two threads add to the same number and the result has the same bits for any number of
// threads:
//
//     1. rows of U_k = L_k A, of P(A) = Σ_k U_k R_kᵀ, of D, of G_k = D R_k      (row i needs only row i of U and D)
//     2. rows of dA = Σ_k L_kᵀ G_k, of dL_k += Σ G_k Aᵀ, of dR_k += Σ Dᵀ U_k
//
// Beyond inputs and outputs this holds L and R transposed and 2 · terms + 2 matrices per sample of the group.
namespace comet {
namespace {

constexpr int64_t TASK_ROWS = 264;                   // a whole sample of usual length, 22 tiles
constexpr int64_t FEWEST_ROWS = 12;                  // one tile
constexpr int64_t GROUP_NUMBERS = int64_t{1} << 24;  // 64 MiB of float32 per group of samples
constexpr int64_t PRODUCTS_PER_THREAD = 1 << 20;     // fewer multiplications are not worth starting a thread

struct Range {
  int64_t begin;
  int64_t end;
  int64_t count() const { return end - begin; }
};

void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride, Range rows, int64_t columns) {
  constexpr int64_t BLOCK = 16;
  for (int64_t i0 = rows.begin; i0 < rows.end; i0 += BLOCK)
    for (int64_t j0 = 0; j0 < columns; j0 += BLOCK)
      for (int64_t i = i0; i < std::min(rows.end, i0 + BLOCK); ++i)
        for (int64_t j = j0; j < std::min(columns, j0 + BLOCK); ++j) to[j * to_stride + i] = from[i * from_stride + j];
}

// Turns rows of P(A) into rows of D = scale (P(A) − T), and writes Σ (P(A) − T)² of each.
void differentiate(float* projected, const float* teacher, const uint8_t* mask, int64_t size, Range rows, float scale,
                   double* squares) {
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    float* y = projected + i * size;
    const float* t = teacher + i * size;
    double sums[8] = {};
    if (mask && !mask[i]) {
      std::fill(y, y + size, 0.0f);
    } else {
      for (int64_t j = 0; j < size; ++j) {
        const float difference = !mask || mask[j] ? y[j] - t[j] : 0.0f;
        sums[j % 8] += static_cast<double>(difference) * difference;
        y[j] = scale * difference;
      }
    }
    squares[i] = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  }
}

// Σ_b n_b²: how many positions count.
double real_positions(const Projection& projection, const uint8_t* mask) {
  double positions = 0;
  for (int64_t b = 0; b < projection.batch; ++b) {
    int64_t real = projection.size;
    if (mask) real = std::count_if(mask + b * real, mask + (b + 1) * real, [](uint8_t token) { return token != 0; });
    positions += static_cast<double>(real) * static_cast<double>(real);
  }
  return positions;
}

// The teacher's side of the loss; `teacher` is null when only P(A) is asked for or D is given.
struct Target {
  const float* teacher = nullptr;
  const uint8_t* mask = nullptr;
  float scale = 0;
  double* squares = nullptr;  // [batch, size]
};

class Run {
 public:
  Run(const Projection& projection, const float* map, const ProjectionGradients& gradients, Target target,
      int64_t threads)
      : p(projection),
        map(map),
        gradients(gradients),
        target(target),
        multiply(multiplication(best_instruction_set())),
        square(p.size * p.size),
        needs_g(gradients.map || gradients.left) {
    const double work = 2.0 * static_cast<double>(p.batch * p.terms) * static_cast<double>(square * p.size);
    this->threads = static_cast<int64_t>(
        std::max(1.0, std::min(static_cast<double>(threads), work / PRODUCTS_PER_THREAD)));
    const int64_t per_sample = (2 * p.terms + 2) * square;
    group = std::max<int64_t>(1, std::min(p.batch / 4, GROUP_NUMBERS / std::max<int64_t>(1, per_sample)));
    const int64_t tasks_per_sample = (2 * this->threads + group - 1) / group;
    rows_per_task = std::min(TASK_ROWS, std::max(FEWEST_ROWS, (p.size + tasks_per_sample - 1) / tasks_per_sample));
    tasks_per_matrix = (p.size + rows_per_task - 1) / rows_per_task;
  }

  // P(A) into `output` ([batch, size, size]) unless it is null. With gradients wanted, D is `given` or made from P(A).
  void run(float* output, const float* given) {
    reserve(output, given);
    for (first = 0; first < p.batch; first += group) {
      const int64_t samples = std::min(group, p.batch - first);
      parallel_for(samples * tasks_per_matrix, threads, [&](int64_t task) {
        first_round(task / tasks_per_matrix, rows_of(task), output, given);
      });
      if (gradients.any()) second_round(samples, given);
    }
  }

 private:
  Range rows_of(int64_t task) const {
    const int64_t begin = task % tasks_per_matrix * rows_per_task;
    return {begin, std::min(p.size, begin + rows_per_task)};
  }

  const float* left(int64_t k) const { return p.left + k * p.max_size * p.max_size; }
  const float* right(int64_t k) const { return p.right + k * p.max_size * p.max_size; }
  float* u(int64_t c, int64_t k) { return u_.data() + (gradients.right ? c * p.terms + k : c) * square; }
  float* g(int64_t c, int64_t k) { return g_.data() + (c * p.terms + k) * square; }
  const float* d(int64_t c, const float* given) const {
    return given ? given + (first + c) * square : d_.data() + c * square;
  }

  void reserve(const float* output, const float* given) {
    const auto numbers = [](int64_t count) { return static_cast<size_t>(count); };
    left_turned.resize(numbers(p.terms * square));
    right_turned.resize(numbers(given ? 0 : p.terms * square));
    u_.resize(numbers(group * (gradients.right ? p.terms : 1) * square));
    g_.resize(numbers(needs_g ? group * p.terms * square : 0));
    map_turned.resize(numbers(gradients.left ? group * square : 0));
    d_.resize(numbers(output || given ? 0 : group * square));
    parallel_for(p.terms, threads, [&](int64_t k) {
      const Range all{0, p.size};
      transpose(left(k), p.max_size, left_turned.data() + k * square, p.size, all, p.size);
      if (!given) transpose(right(k), p.max_size, right_turned.data() + k * square, p.size, all, p.size);
    });
    for (float* gradient : {gradients.left, gradients.right})
      if (gradient) std::fill(gradient, gradient + p.terms * p.max_size * p.max_size, 0.0f);
  }

  void first_round(int64_t c, Range rows, float* output, const float* given) {
    const int64_t size = p.size, offset = rows.begin * size;
    const float* a = map + (first + c) * square;
    float* projected = output ? output + (first + c) * square : given ? nullptr : d_.data() + c * square;
    if (gradients.left) transpose(a, size, map_turned.data() + c * square, size, rows, size);
    for (int64_t k = 0; k < p.terms; ++k) {
      if (given && !gradients.right) break;
      float* u_rows = u(c, k) + offset;
      multiply(rows.count(), size, size, {left_turned.data() + k * square + rows.begin, 1, size}, a, size, u_rows, size,
               false);
      if (!given)
        multiply(rows.count(), size, size, {u_rows, size, 1}, right_turned.data() + k * square, size,
                 projected + offset, size, k > 0);
    }
    if (target.teacher) {
      const uint8_t* mask = target.mask ? target.mask + (first + c) * size : nullptr;
      differentiate(projected, target.teacher + (first + c) * square, mask, size, rows, target.scale,
                    target.squares + (first + c) * size);
    }
    if (!needs_g) return;
    for (int64_t k = 0; k < p.terms; ++k)
      multiply(rows.count(), size, size, {d(c, given) + offset, size, 1}, right(k), p.max_size, g(c, k) + offset, size,
               false);
  }

  void second_round(int64_t samples, const float* given) {
    const int64_t size = p.size;
    const int64_t of_map = gradients.map ? samples * tasks_per_matrix : 0;
    const int64_t of_left = gradients.left ? p.terms * tasks_per_matrix : 0;
    const int64_t of_right = gradients.right ? p.terms * tasks_per_matrix : 0;
    parallel_for(of_map + of_left + of_right, threads, [&](int64_t task) {
      const bool map_task = task < of_map, left_task = !map_task && task < of_map + of_left;
      if (!map_task) task -= left_task ? of_map : of_map + of_left;
      const int64_t which = task / tasks_per_matrix;  // a sample for dA, a term for dL and dR
      const Range rows = rows_of(task);
      if (map_task) {
        for (int64_t k = 0; k < p.terms; ++k)
          multiply(rows.count(), size, size, {left(k) + rows.begin, 1, p.max_size}, g(which, k), size,
                   gradients.map + (first + which) * square + rows.begin * size, size, k > 0);
        return;
      }
      float* sum = (left_task ? gradients.left : gradients.right) + (which * p.max_size + rows.begin) * p.max_size;
      for (int64_t c = 0; c < samples; ++c) {
        const LeftFactor factor = left_task ? LeftFactor{g(c, which) + rows.begin * size, size, 1}
                                            : LeftFactor{d(c, given) + rows.begin, 1, size};
        multiply(rows.count(), size, size, factor, left_task ? map_turned.data() + c * square : u(c, which), size, sum,
                 p.max_size, true);
      }
    });
  }

  const Projection p;
  const float* map;
  const ProjectionGradients gradients;
  const Target target;
  const Multiply multiply;
  const int64_t square;
  const bool needs_g;
  int64_t threads, group, rows_per_task, tasks_per_matrix;
  int64_t first = 0;  // sample of the group at hand
  std::vector<float> left_turned, right_turned, map_turned, u_, g_, d_;
};

void check(const Projection& projection) {
  if (projection.size < 1 || projection.size > projection.max_size || projection.terms < 1 || projection.batch < 0)
    throw std::invalid_argument("factorized_projection: expected 1 <= size <= max_size, terms >= 1, batch >= 0");
}

}  // namespace

Multiply multiplication(InstructionSet set) {
#ifdef COMET_X86
  if (set == InstructionSet::avx512) return avx512::multiplication();
  if (set == InstructionSet::avx2) return avx2::multiplication();
#else
  static_cast<void>(set);
#endif
  return plain::multiplication();
}

void factorized_projection_forward(const Projection& projection, const float* map, float* output, int64_t threads) {
  check(projection);
  Run(projection, map, {}, {}, threads).run(output, nullptr);
}

void factorized_projection_backward(const Projection& projection, const float* map, const float* output_gradient,
                                    const ProjectionGradients& gradients, int64_t threads) {
  check(projection);
  if (gradients.any()) Run(projection, map, gradients, {}, threads).run(nullptr, output_gradient);
}

void projected_mse(const Projection& projection, const float* student_map, const float* teacher_map,
                   const uint8_t* mask, float* loss, const ProjectionGradients& gradients, int64_t threads) {
  check(projection);
  const double positions = std::max(1.0, real_positions(projection, mask));
  std::vector<double> squares(static_cast<size_t>(projection.batch * projection.size));
  const Target target{teacher_map, mask, static_cast<float>(2 / positions), squares.data()};
  Run(projection, student_map, gradients, target, threads).run(nullptr, nullptr);
  double sum = 0;
  for (const double square : squares) sum += square;
  *loss = static_cast<float>(sum / positions);
}

}  // namespace comet

// Runs csrc's C++ over odd shapes and compares with loops in double.
// Meant to be compiled with -fsanitize=address,undefined: every buffer has exactly the size it must have.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/instruction_set.h"
#include "factorized_projection/cpu_product.h"
#include "factorized_projection/factorized_projection.h"
#include "softened_kl/cpu_blocks.h"
#include "softened_kl/softened_kl.h"

namespace {

using comet::Dtype;
using Numbers = std::vector<float>;
using Truth = std::vector<double>;

constexpr float INFINITE = std::numeric_limits<float>::infinity();
constexpr float NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();

std::mt19937 randomness(0);

Numbers normal(int64_t count, float scale) {
  std::normal_distribution<float> distribution(0, scale);
  Numbers numbers(static_cast<size_t>(count));
  for (float& number : numbers) number = distribution(randomness);
  return numbers;
}

Numbers unwritten(int64_t count) { return Numbers(static_cast<size_t>(count), NOT_A_NUMBER); }

void require(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "wrong: %s\n", what.c_str());
  std::exit(1);
}

// Relative to the size of the truth, or of `terms` where the truth may cancel to less.
void require_near(const Numbers& actual, const Truth& truth, const std::string& what, double terms = 0) {
  double error = 0, size = terms * terms;
  for (size_t i = 0; i < truth.size(); ++i) {
    error += (actual[i] - truth[i]) * (actual[i] - truth[i]);
    size += truth[i] * truth[i];
  }
  require(actual.size() == truth.size() && std::sqrt(error) <= 1e-5 * std::sqrt(size),
          what + ": error " + std::to_string(std::sqrt(error)) + " of " + std::to_string(std::sqrt(size)));
}

// ---- factorized projection

struct Case {
  int64_t batch, size, terms, max_size;
  bool masked;

  std::string name(const char* what) const {
    return std::string(what) + " at batch " + std::to_string(batch) + ", size " + std::to_string(size) + ", terms " +
           std::to_string(terms) + ", max_size " + std::to_string(max_size);
  }
};

struct Outcome {
  Numbers projected, loss, map, left, right, map_of_given, left_of_given, right_of_given;
};

struct Inputs {
  Numbers map, teacher, left, right, given;
  std::vector<uint8_t> mask;

  explicit Inputs(const Case& c)
      : map(normal(c.batch * c.size * c.size, 1)),
        teacher(normal(c.batch * c.size * c.size, 1)),
        left(normal(c.terms * c.max_size * c.max_size, 1)),
        right(normal(c.terms * c.max_size * c.max_size, 1)),
        given(normal(c.batch * c.size * c.size, 1)) {
    for (int64_t i = 0; i < c.batch * c.size; ++i) mask.push_back(!c.masked || i % 3 != 1);
  }
  comet::Projection projection(const Case& c) const {
    return {left.data(), right.data(), c.terms, c.max_size, c.batch, c.size};
  }
};

struct True {
  Truth projected, map, left, right;
};

// P(A), and the gradients that D brings.
True naive(const Case& c, const Inputs& in, const Truth& d) {
  const int64_t s = c.size, square = s * s, corner = c.max_size * c.max_size;
  const auto count = [](int64_t n) { return static_cast<size_t>(n); };
  True truth{Truth(count(c.batch * square)), Truth(count(c.batch * square)), Truth(count(c.terms * corner)),
             Truth(count(c.terms * corner))};
  Truth u(count(square)), g(count(square));
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t k = 0; k < c.terms; ++k) {
      const float *a = &in.map[count(b * square)], *l = &in.left[count(k * corner)], *r = &in.right[count(k * corner)];
      const double* db = d.empty() ? nullptr : &d[count(b * square)];
      for (int64_t i = 0; i < s; ++i)
        for (int64_t j = 0; j < s; ++j) {
          double u_sum = 0, g_sum = 0;
          for (int64_t p = 0; p < s; ++p) {
            u_sum += static_cast<double>(l[i * c.max_size + p]) * a[p * s + j];
            if (db) g_sum += db[i * s + p] * r[p * c.max_size + j];
          }
          u[count(i * s + j)] = u_sum;
          g[count(i * s + j)] = g_sum;
        }
      for (int64_t i = 0; i < s; ++i)
        for (int64_t j = 0; j < s; ++j)
          for (int64_t p = 0; p < s; ++p) {
            truth.projected[count(b * square + i * s + j)] += u[count(i * s + p)] * r[j * c.max_size + p];
            if (!db) continue;
            truth.map[count(b * square + i * s + j)] += l[p * c.max_size + i] * g[count(p * s + j)];
            truth.left[count(k * corner + i * c.max_size + j)] += g[count(i * s + p)] * a[j * s + p];
            truth.right[count(k * corner + i * c.max_size + j)] += db[p * s + i] * u[count(p * s + j)];
          }
    }
  return truth;
}

Outcome run_on_cpu(const Case& c, const Inputs& in, int64_t threads) {
  const int64_t maps = c.batch * c.size * c.size, corners = c.terms * c.max_size * c.max_size;
  Outcome out{unwritten(maps), unwritten(1), unwritten(maps), unwritten(corners), unwritten(corners),
              unwritten(maps), unwritten(corners), unwritten(corners)};
  const comet::Projection p = in.projection(c);
  comet::factorized_projection_forward(p, in.map.data(), out.projected.data(), threads);
  comet::factorized_projection_backward(p, in.map.data(), in.given.data(),
                                        {out.map_of_given.data(), out.left_of_given.data(), out.right_of_given.data()},
                                        threads);
  comet::projected_mse(p, in.map.data(), in.teacher.data(), c.masked ? in.mask.data() : nullptr, out.loss.data(),
                       {out.map.data(), out.left.data(), out.right.data()}, threads);
  return out;
}

void compare(const Case& c, const Inputs& in, const Outcome& out, const char* where) {
  const int64_t s = c.size;
  Truth d(in.given.begin(), in.given.end());
  const True given = naive(c, in, d);
  double positions = 0, loss = 0;
  const auto real = [&](int64_t b, int64_t i) { return in.mask[static_cast<size_t>(b * s + i)] != 0; };
  for (int pass = 0; pass < 2; ++pass)
    for (int64_t b = 0; b < c.batch; ++b)
      for (int64_t i = 0; i < s; ++i)
        for (int64_t j = 0; j < s; ++j) {
          const auto at = static_cast<size_t>((b * s + i) * s + j);
          const bool counts = real(b, i) && real(b, j);
          const double difference = counts ? given.projected[at] - in.teacher[at] : 0;
          if (pass == 0) positions += counts, loss += difference * difference;
          else d[at] = 2 * difference / std::max(1.0, positions);
        }
  const True own = naive(c, in, d);
  const auto name = [&](const char* what) { return c.name(what) + where; };
  require_near(out.projected, given.projected, name("P(A)"));
  require_near(out.map_of_given, given.map, name("dA given D"));
  require_near(out.left_of_given, given.left, name("dL given D"));
  require_near(out.right_of_given, given.right, name("dR given D"));
  require_near(out.loss, {loss / std::max(1.0, positions)}, name("loss"));
  require_near(out.map, own.map, name("dA"));
  require_near(out.left, own.left, name("dL"));
  require_near(out.right, own.right, name("dR"));
}

bool same(const Outcome& a, const Outcome& b) {
  return a.projected == b.projected && a.loss == b.loss && a.map == b.map && a.left == b.left && a.right == b.right &&
         a.map_of_given == b.map_of_given && a.left_of_given == b.left_of_given && a.right_of_given == b.right_of_given;
}

void check_projection() {
  for (const Case& c : {Case{1, 1, 1, 1, false}, Case{2, 17, 3, 20, true}, Case{10, 5, 2, 5, true},
                        Case{1, 65, 1, 66, true}, Case{9, 3, 1, 4, false}, Case{1, 2, 32, 3, true},
                        Case{0, 3, 2, 3, false}, Case{3, 129, 2, 129, true}, Case{1, 200, 1, 200, false}}) {
    const Inputs in(c);
    const Outcome one = run_on_cpu(c, in, 1);
    compare(c, in, one, " on the CPU");
    require(same(one, run_on_cpu(c, in, 7)), c.name("one thread and seven"));
  }
}

void check_products(comet::InstructionSet set) {
  const comet::Multiply multiply = comet::multiplication(set);
  for (const int64_t rows : {1, 4, 13, 150})
    for (const int64_t columns : {1, 7, 33, 50})
      for (const int64_t depth : {1, 6, 200})
        for (const bool turned : {false, true}) {
          const Numbers a = normal(rows * depth, 1), b = normal(depth * columns, 1);
          Numbers c = normal(rows * columns, 1);
          Truth truth(c.begin(), c.end());
          const int64_t row_stride = turned ? 1 : depth, depth_stride = turned ? rows : 1;
          for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < columns; ++j)
              for (int64_t p = 0; p < depth; ++p)
                truth[static_cast<size_t>(i * columns + j)] +=
                    static_cast<double>(a[static_cast<size_t>(i * row_stride + p * depth_stride)]) *
                    b[static_cast<size_t>(p * columns + j)];
          multiply(rows, columns, depth, {a.data(), row_stride, depth_stride}, b.data(), columns, c.data(), columns,
                   true);
          require_near(c, truth,
                       std::string(comet::name(set)) + " product " + std::to_string(rows) + " × " +
                           std::to_string(depth) + " × " + std::to_string(columns) + (turned ? ", turned" : ""),
                       std::sqrt(static_cast<double>(rows * columns * depth)));
        }
}

// ---- softened KL

float from_half(uint16_t half, Dtype dtype) {
  if (dtype == Dtype::bfloat16) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float number;
    std::memcpy(&number, &bits, 4);
    return number;
  }
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const float magnitude = exponent == 31 ? (fraction ? NOT_A_NUMBER : INFINITE)
                          : exponent     ? std::ldexp(static_cast<float>(1024 + fraction), exponent - 25)
                                         : std::ldexp(static_cast<float>(fraction), -24);
  return half & 0x8000 ? -magnitude : magnitude;
}

// Every half at once as a student that is compared with itself: its gradient is 0, its shape passes both conversions.
void check_halves(comet::InstructionSet set) {
  const comet::SoftenedKlBlocks blocks = comet::softened_kl_blocks(set);
  for (const Dtype dtype : {Dtype::bfloat16, Dtype::float16})
    for (uint32_t first = 0; first < 65536; first += 64) {
      std::vector<uint16_t> halves, back(64, 1);
      Numbers wide;
      for (uint32_t i = first; i < first + 64; ++i) halves.push_back(static_cast<uint16_t>(i));
      for (const uint16_t half : halves) wide.push_back(from_half(half, dtype));
      // Sums over one logit at a time: its exponential is 1 for a finite number, its maximum is the number.
      for (size_t i = 0; i < 64; i += 13) {
        const comet::KlSums sums = blocks.forward({&halves[i], dtype, nullptr}, {&wide[i], Dtype::float32, nullptr}, 1, 1.0f);
        if (std::isfinite(wide[i]))
          require(sums.student_max == wide[i] && sums.student_sum == 1 && sums.first == 0, "a half");
      }
      // e^0 · factor − e^(−∞): the factor itself, narrowed, is the half it came from.
      for (size_t i = 0; i < 64; i += 13) {
        const float zero = 0, nothing = -INFINITE;
        blocks.backward({&zero, Dtype::float32, nullptr}, {&nothing, Dtype::float32, nullptr}, &back[i], dtype, 1, 1.0f,
                        {0, 0, 0, 0}, wide[i], false);
        if (std::isfinite(wide[i]) && wide[i] != 0) require(back[i] == halves[i], "a half written back");
      }
    }
}

void check_rounding(comet::InstructionSet set) {
  const comet::SoftenedKlBlocks blocks = comet::softened_kl_blocks(set);
  const Numbers factors = normal(2000, 3), small = normal(2000, 1e-6f);
  for (const Dtype dtype : {Dtype::bfloat16, Dtype::float16})
    for (const Numbers* numbers : {&factors, &small})
      for (const float factor : *numbers) {
        const float zero = 0, nothing = -INFINITE;
        uint16_t half = 0;
        blocks.backward({&zero, Dtype::float32, nullptr}, {&nothing, Dtype::float32, nullptr}, &half, dtype, 1, 1.0f,
                        {0, 0, 0, 0}, factor, false);
        const float error = std::fabs(from_half(half, dtype) - factor);
        for (const int step : {(half & 0x7fff) ? -1 : 1, 1})
          require(error <= std::fabs(from_half(static_cast<uint16_t>(half + step), dtype) - factor), "nearest half");
      }
}

// The same distributions from far away: every bit of the gradient stays.
void check_far_logits(comet::InstructionSet set) {
  const comet::SoftenedKlBlocks blocks = comet::softened_kl_blocks(set);
  constexpr int64_t COUNT = 100;
  const auto gradient = [&](float far) {
    Numbers student, teacher, slope = unwritten(COUNT);
    for (int64_t i = 0; i < COUNT; ++i) {
      student.push_back(far - static_cast<float>(i) / 8);
      teacher.push_back(-far - static_cast<float>(COUNT - 1 - i) / 4);
    }
    blocks.backward({student.data(), Dtype::float32, nullptr}, {teacher.data(), Dtype::float32, nullptr}, slope.data(),
                    Dtype::float32, COUNT, 1 / 1.5f, {far, 0.75f, -far, 1.75f}, 1.0f, false);
    return slope;
  };
  const Numbers near = gradient(0);
  require(std::fabs(near[0] - std::exp(-2.5f)) < 1e-6f, std::string(comet::name(set)) + " gradient of a block");
  require(gradient(16384) == near, std::string(comet::name(set)) + " gradient of logits far from 0");
}

void check_kl() {
  for (const int64_t v : {1, 15, 1009, 40000}) {
    const int64_t n = 3, s_stride = v + 5, t_stride = v + 2, g_stride = v + 1;
    Numbers student = normal((n - 1) * s_stride + v, 5), teacher = normal((n - 1) * t_stride + v, 5);
    const Numbers temperature = {1.0f, 2.0f, 0.7f}, scale = {1.0f, -2.0f, 0.5f};
    const std::vector<uint8_t> mask = {1, 0, 1};
    student[static_cast<size_t>(s_stride)] = NOT_A_NUMBER;  // in the row that is masked
    if (v > 1) student[0] = teacher[0] = -INFINITE;
    Numbers kl = unwritten(n), statistics = unwritten(4 * n), g = unwritten((n - 1) * g_stride + v);
    const Numbers bias = normal(v, 2);
    const comet::SoftenedKlRows rows = {{student.data(), s_stride, Dtype::float32, bias.data()},
                                        {teacher.data(), t_stride, Dtype::float32},
                                        temperature.data(), mask.data(), n, v};
    comet::softened_kl_forward(rows, kl.data(), statistics.data(), 2);
    comet::softened_kl_backward(rows, scale.data(), statistics.data(), g.data(), g_stride, Dtype::float32, 2);
    for (int64_t r = 0; r < n; ++r)
      for (int64_t j = 0; j < v; ++j) student[static_cast<size_t>(r * s_stride + j)] += bias[static_cast<size_t>(j)];
    for (int64_t r = 0; r < n; ++r) {
      const double t = temperature[static_cast<size_t>(r)];
      const auto lse = [&](const Numbers& logits, int64_t stride) {
        double sum = 0;
        for (int64_t j = 0; j < v; ++j) sum += std::exp(logits[static_cast<size_t>(r * stride + j)] / t);
        return std::log(sum);
      };
      const double ls = lse(student, s_stride), lt = lse(teacher, t_stride);
      double truth = 0;
      Truth slope;
      Numbers found;
      for (int64_t j = 0; j < v; ++j) {
        const double log_s = student[static_cast<size_t>(r * s_stride + j)] / t - ls;
        const double log_t = teacher[static_cast<size_t>(r * t_stride + j)] / t - lt;
        if (std::exp(log_t) > 0) truth += t * t * std::exp(log_t) * (log_t - log_s);
        slope.push_back(scale[static_cast<size_t>(r)] * t * (std::exp(log_s) - std::exp(log_t)));
        found.push_back(g[static_cast<size_t>(r * g_stride + j)]);
      }
      if (!mask[static_cast<size_t>(r)]) truth = 0, slope.assign(slope.size(), 0);
      require(std::fabs(kl[static_cast<size_t>(r)] - truth) <= 1e-5 * truth + 1e-7, "KL at v = " + std::to_string(v));
      require_near(found, slope, "gradient of KL at v = " + std::to_string(v), 1e-9);
    }
  }
}

}  // namespace

int main() {
  for (int set = 0; set <= static_cast<int>(comet::best_instruction_set()); ++set) {
    const auto instructions = static_cast<comet::InstructionSet>(set);
    check_products(instructions);
    check_halves(instructions);
    check_rounding(instructions);
    check_far_logits(instructions);
    std::printf("%s: right\n", comet::name(instructions));
  }
  check_kl();
  check_projection();
  std::printf("all right\n");
}

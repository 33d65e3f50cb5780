// Runs the projection on emulated CUDA over odd shapes, precisions and gradients, for AddressSanitizer and UBSan: every
// buffer has exactly the size it must have, and whatever is written must not be NaN. What it computes is judged
// elsewhere.
#include <cuda_runtime.h>

#include <cstdio>
#include <limits>
#include <vector>

#include "factorized_projection/factorized_projection.h"

namespace {

using Numbers = std::vector<float>;

Numbers some(int64_t count, float first) {
  Numbers numbers(static_cast<size_t>(count));
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = first + static_cast<float>(i % 7) / 8;
  return numbers;
}

Numbers unwritten(int64_t count) {
  return Numbers(static_cast<size_t>(count), std::numeric_limits<float>::quiet_NaN());
}

bool written(const Numbers& numbers) {
  for (const float number : numbers)
    if (number != number) return false;
  return true;
}

struct Case {
  int64_t batch, size, terms, max_size;
};

bool run(const Case& c, int precision, comet::WantedGradients wanted) {
  const int64_t maps = c.batch * c.size * c.size, factors = c.terms * c.max_size * c.max_size;
  const Numbers student = some(maps, 0), teacher = some(maps, 1), left = some(factors, -1), right = some(factors, 0);
  const std::vector<uint8_t> mask(static_cast<size_t>(c.batch * c.size), 1);
  const comet::Projection p = {left.data(), right.data(), c.terms, c.max_size, c.batch, c.size};
  Numbers output = unwritten(maps), loss = unwritten(1);
  Numbers d_map = unwritten(wanted.map ? maps : 0), d_left = unwritten(wanted.left ? factors : 0);
  Numbers d_right = unwritten(wanted.right ? factors : 0);
  const comet::ProjectionGradients gradients = {wanted.map ? d_map.data() : nullptr,
                                                wanted.left ? d_left.data() : nullptr,
                                                wanted.right ? d_right.data() : nullptr};
  const auto call = [&](Numbers& room) { return comet::CudaCall{nullptr, room.data(), precision}; };
  const auto workspace = [&](comet::WantedGradients needs) {
    return unwritten(comet::cuda_workspace_bytes(c.terms, c.batch, c.size, needs) / 4);
  };
  Numbers room = workspace({});
  comet::cuda_factorized_projection_forward(p, student.data(), output.data(), call(room));
  room = workspace(wanted);
  comet::cuda_projected_mse(p, student.data(), teacher.data(), c.size % 2 ? mask.data() : nullptr, loss.data(),
                            gradients, call(room));
  bool right_so_far = written(output) && written(loss) && written(d_map) && written(d_left) && written(d_right);
  room = workspace(wanted);
  comet::cuda_factorized_projection_backward(p, student.data(), teacher.data(), gradients, call(room));
  return right_so_far && written(d_map) && written(d_left) && written(d_right);
}

}  // namespace

int main() {
  for (const int limit : {99 * 1024, 227 * 1024})
    for (const int precision : {0, 1, 2}) {
      if (limit > 99 * 1024 && precision != comet::IN_TF32) continue;  // nothing else depends on it
      for (const Case& c : {Case{1, 1, 1, 1}, Case{6, 17, 3, 20}, Case{2, 65, 1, 66}, Case{1, 130, 1, 132}}) {
        emulated::shared_memory_limit = limit;
        const bool large = c.size > 100;
        for (const comet::WantedGradients wanted :
             {comet::WantedGradients{true, true, true}, {false, true, false}, {true, false, false}}) {
          if (large && !(wanted.map && wanted.left)) continue;
          if (run(c, precision, wanted)) continue;
          std::fprintf(stderr, "a number is missing at size %d, precision %d\n", static_cast<int>(c.size), precision);
          return 1;
        }
      }
    }
  std::printf("all right\n");
}

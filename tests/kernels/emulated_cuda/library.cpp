// The projection on emulated CUDA for tests in Python: addresses in, an error message out.
#include <cuda_runtime.h>

#include <cstring>
#include <exception>

#include "factorized_projection/factorized_projection.h"

namespace {

// 0 and an empty message, or 1 and what went wrong.
template <class Work>
int guarded(char* message, size_t room, const Work& work) {
  try {
    work();
    return 0;
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), room - 1);
    return 1;
  }
}

}  // namespace

extern "C" {

void emulated_machine(int shared_memory_limit, bool last_thread_first) {
  emulated::shared_memory_limit = shared_memory_limit;
  emulated::last_thread_first = last_thread_first;
}

int64_t emulated_workspace_bytes(int64_t terms, int64_t batch, int64_t size, bool map, bool left, bool right) {
  return comet::cuda_workspace_bytes(terms, batch, size, {map, left, right});
}

int emulated_forward(const comet::Projection* projection, const float* map, float* output, void* workspace,
                     int precision, char* message, size_t room) {
  return guarded(message, room, [&] {
    comet::cuda_factorized_projection_forward(*projection, map, output, {nullptr, workspace, precision});
  });
}

int emulated_backward(const comet::Projection* projection, const float* map, const float* output_gradient,
                      const comet::ProjectionGradients* gradients, void* workspace, int precision, char* message,
                      size_t room) {
  return guarded(message, room, [&] {
    comet::cuda_factorized_projection_backward(*projection, map, output_gradient, *gradients,
                                               {nullptr, workspace, precision});
  });
}

int emulated_mse(const comet::Projection* projection, const float* student, const float* teacher, const uint8_t* mask,
                 float* loss, const comet::ProjectionGradients* gradients, void* workspace, int precision,
                 char* message, size_t room) {
  return guarded(message, room, [&] {
    comet::cuda_projected_mse(*projection, student, teacher, mask, loss, *gradients, {nullptr, workspace, precision});
  });
}
}

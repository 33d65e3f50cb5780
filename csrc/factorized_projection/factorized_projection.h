// The factorized projection of attention maps and its mean squared error against a teacher's maps:
//
//     P(A) = Σ_k L_k A R_kᵀ                            maps A: [batch, size, size], k = 1 … terms
//     loss = Σ (P(A) − T)²  /  Σ_b n_b²                over positions i, j of sample b that are both real; n_b real tokens
//
// With D the gradient of the loss with respect to P(A) (for the loss above D = 2 (P(A) − T) / Σ n_b², 0 on padding):
//
//     dA = Σ_k L_kᵀ D R_k        dL_k = Σ_b D R_k Aᵀ        dR_k = Σ_b Dᵀ L_k A
//
// L and R are [terms, max_size, max_size]; their leading size × size corner counts. All maps lie densely in memory.
#pragma once

#include <cstdint>

namespace comet {

struct Projection {
  const float* left;
  const float* right;
  int64_t terms;
  int64_t max_size;
  int64_t batch;
  int64_t size;
};

// Where to write gradients; null where none is wanted. Outside the leading corner those of left and right become 0.
struct ProjectionGradients {
  float* map;
  float* left;
  float* right;

  bool any() const { return map || left || right; }
};

void factorized_projection_forward(const Projection& projection, const float* map, float* output, int64_t threads);

void factorized_projection_backward(const Projection& projection, const float* map, const float* output_gradient,
                                    const ProjectionGradients& gradients, int64_t threads);

// mask: [batch, size], 0 on padding; or null: every position is real. loss: one number. With no real position loss and
// gradients are 0.
void projected_mse(const Projection& projection, const float* student_map, const float* teacher_map,
                   const uint8_t* mask, float* loss, const ProjectionGradients& gradients, int64_t threads);

// The same on the current CUDA device. Nothing waits for the device; memory comes from the caller.
//
// How factors of matrix products are rounded; sums are float32 always.
enum Precision : int {
  IN_FLOAT32 = 0,   // not at all
  IN_TF32 = 1,      // to tf32: 11 bits of mantissa
  IN_BFLOAT16 = 2,  // to bfloat16: 8 bits of mantissa
};

struct CudaCall {
  void* stream;     // cudaStream_t of the current device
  void* workspace;  // cuda_workspace_bytes(...) bytes, aligned to 16
  int precision;    // a Precision
};

struct WantedGradients {
  bool map;
  bool left;
  bool right;
};

// For each of the three functions below the workspace is the same function of sizes and of what is wanted.
int64_t cuda_workspace_bytes(int64_t terms, int64_t batch, int64_t size, WantedGradients wanted);

void cuda_factorized_projection_forward(const Projection& projection, const float* map, float* output, CudaCall call);

void cuda_factorized_projection_backward(const Projection& projection, const float* map, const float* output_gradient,
                                         const ProjectionGradients& gradients, CudaCall call);

void cuda_projected_mse(const Projection& projection, const float* student_map, const float* teacher_map,
                        const uint8_t* mask, float* loss, const ProjectionGradients& gradients, CudaCall call);

}  // namespace comet

// Softened KL divergence of teacher and student logits on the CPU:
//
//     KL_r = T_r² Σ_j softmax(t_r / T_r)_j · (log softmax(t_r / T_r)_j − log softmax(s_r / T_r)_j)
//
// (Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015).
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace comet {

// n rows of v logits, columns next to each other, `stride` elements from row to row.
struct Logits {
  const void* data;
  int64_t stride;
  Dtype dtype;
  const float* bias = nullptr;  // [v], added to every row; or null
};

struct SoftenedKlRows {
  Logits student;
  Logits teacher;
  const float* temperature;  // [n]
  const uint8_t* mask;       // [n], rows with 0 are left out; or null: all rows count
  int64_t n;
  int64_t v;
};

// kl: [n]. statistics: [4, n], the student's largest logit, by how much its log Σ exp((s − max s) / T) exceeds the
// teacher's, the teacher's largest logit and log Σ exp((t − max t) / T); all 0 on rows left out. One number a side, the
// log-sum-exp, would round away the digits that the gradient needs of large logits, and of sides that nearly agree.
void softened_kl_forward(const SoftenedKlRows& rows, float* kl, float* statistics, int64_t threads);

// gradient[r, j] = scale[r] · T_r · (softmax(s/T)_j − softmax(t/T)_j); it may lie where the student's logits lie.
// `statistics` are those that forward wrote.
void softened_kl_backward(const SoftenedKlRows& rows, const float* scale, const float* statistics,
                          void* gradient, int64_t gradient_stride, Dtype gradient_dtype,
                          int64_t threads);

}  // namespace comet

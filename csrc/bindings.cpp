// The one file that knows Python: addresses and sizes in, exceptions out, the GIL released while C++ runs.
//
// std::invalid_argument becomes ValueError, every other std::exception RuntimeError.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cpu/instruction_set.h"
#include "cpu/team.h"
#include "factorized_projection/factorized_projection.h"
#include "softened_kl/softened_kl.h"

namespace py = pybind11;

namespace {

template <class T>
T* pointer(int64_t address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

comet::Dtype dtype_of(int64_t code) {
  if (code < 0 || code > 2) throw std::invalid_argument("dtype code: expected 0, 1 or 2");
  return static_cast<comet::Dtype>(code);
}

comet::SoftenedKlRows rows_of(int64_t student, int64_t teacher, int64_t temperature, int64_t mask, int64_t n, int64_t v,
                              int64_t student_stride, int64_t teacher_stride, int64_t student_dtype,
                              int64_t teacher_dtype, int64_t student_bias, int64_t teacher_bias) {
  return {{pointer<const void>(student), student_stride, dtype_of(student_dtype), pointer<const float>(student_bias)},
          {pointer<const void>(teacher), teacher_stride, dtype_of(teacher_dtype), pointer<const float>(teacher_bias)},
          pointer<const float>(temperature),
          pointer<const uint8_t>(mask),
          n,
          v};
}

void softened_kl_forward(int64_t student, int64_t teacher, int64_t temperature, int64_t mask, int64_t n, int64_t v,
                         int64_t student_stride, int64_t teacher_stride, int64_t student_dtype, int64_t teacher_dtype,
                         int64_t kl, int64_t statistics, int64_t threads, int64_t student_bias,
                         int64_t teacher_bias) {
  comet::softened_kl_forward(rows_of(student, teacher, temperature, mask, n, v, student_stride, teacher_stride,
                                     student_dtype, teacher_dtype, student_bias, teacher_bias),
                             pointer<float>(kl), pointer<float>(statistics), threads);
}

void softened_kl_backward(int64_t student, int64_t teacher, int64_t temperature, int64_t mask, int64_t scale,
                          int64_t statistics, int64_t n, int64_t v, int64_t student_stride, int64_t teacher_stride,
                          int64_t student_dtype, int64_t teacher_dtype, int64_t gradient, int64_t gradient_stride,
                          int64_t gradient_dtype, int64_t threads, int64_t student_bias, int64_t teacher_bias) {
  comet::softened_kl_backward(rows_of(student, teacher, temperature, mask, n, v, student_stride, teacher_stride,
                                      student_dtype, teacher_dtype, student_bias, teacher_bias),
                              pointer<const float>(scale), pointer<const float>(statistics),
                              pointer<void>(gradient), gradient_stride, dtype_of(gradient_dtype), threads);
}

void require(bool holds, const char* argument, int64_t got, const std::string& expected) {
  if (!holds)
    throw std::invalid_argument(std::string(argument) + ": got " + std::to_string(got) + ", expected " + expected);
}

// What the ops' checks in Python promise, for callers that come by another way.
comet::Projection projection_of(int64_t left, int64_t right, int64_t terms, int64_t max_size, int64_t batch,
                                int64_t size) {
  constexpr int64_t LARGEST = 1 << 20;
  require(terms >= 1 && terms <= LARGEST, "terms", terms, "at least 1");
  require(max_size >= 1 && max_size <= LARGEST, "max_size", max_size, "1 to " + std::to_string(LARGEST));
  require(size >= 1 && size <= max_size, "size", size, "1 to max_size = " + std::to_string(max_size));
  require(batch >= 0, "batch", batch, "0 or more");
  require(left != 0, "left", left, "an address");
  require(right != 0, "right", right, "an address");
  return {pointer<const float>(left), pointer<const float>(right), terms, max_size, batch, size};
}

// An address that must be given if there is any sample.
template <class T>
T* maps(int64_t address, int64_t batch, const char* argument) {
  require(address != 0 || batch == 0, argument, address, "an address");
  return pointer<T>(address);
}

comet::ProjectionGradients gradients_of(int64_t map, int64_t left, int64_t right) {
  return {pointer<float>(map), pointer<float>(left), pointer<float>(right)};
}

void factorized_projection_forward(int64_t map, int64_t left, int64_t right, int64_t terms, int64_t max_size,
                                   int64_t batch, int64_t size, int64_t output, int64_t threads) {
  comet::factorized_projection_forward(projection_of(left, right, terms, max_size, batch, size),
                                       maps<const float>(map, batch, "map"), maps<float>(output, batch, "output"),
                                       threads);
}

void factorized_projection_backward(int64_t map, int64_t left, int64_t right, int64_t terms, int64_t max_size,
                                    int64_t batch, int64_t size, int64_t output_gradient, int64_t map_gradient,
                                    int64_t left_gradient, int64_t right_gradient, int64_t threads) {
  comet::factorized_projection_backward(projection_of(left, right, terms, max_size, batch, size),
                                        maps<const float>(map, batch, "map"),
                                        maps<const float>(output_gradient, batch, "output_gradient"),
                                        gradients_of(map_gradient, left_gradient, right_gradient), threads);
}

void projected_mse(int64_t student_map, int64_t teacher_map, int64_t left, int64_t right, int64_t mask, int64_t terms,
                   int64_t max_size, int64_t batch, int64_t size, int64_t loss, int64_t map_gradient,
                   int64_t left_gradient, int64_t right_gradient, int64_t threads) {
  comet::projected_mse(projection_of(left, right, terms, max_size, batch, size),
                       maps<const float>(student_map, batch, "student_map"),
                       maps<const float>(teacher_map, batch, "teacher_map"), pointer<const uint8_t>(mask),
                       maps<float>(loss, 1, "loss"), gradients_of(map_gradient, left_gradient, right_gradient),
                       threads);
}

#ifdef COMET_HAS_CUDA
constexpr bool HAS_CUDA = true;

int64_t cuda_projection_workspace_bytes(int64_t terms, int64_t batch, int64_t size, bool needs_map, bool needs_left,
                                        bool needs_right) {
  return comet::cuda_workspace_bytes(terms, batch, size, {needs_map, needs_left, needs_right});
}

comet::CudaCall call_of(int64_t workspace, int64_t precision, int64_t stream) {
  require(precision >= 0 && precision <= 2, "precision", precision, "0, 1 or 2");
  require(workspace % 16 == 0, "workspace", workspace, "a multiple of 16");
  return {pointer<void>(stream), pointer<void>(workspace), static_cast<int>(precision)};
}

void cuda_factorized_projection_forward(int64_t map, int64_t left, int64_t right, int64_t terms, int64_t max_size,
                                        int64_t batch, int64_t size, int64_t output, int64_t workspace,
                                        int64_t precision, int64_t stream) {
  comet::cuda_factorized_projection_forward(projection_of(left, right, terms, max_size, batch, size),
                                            maps<const float>(map, batch, "map"),
                                            maps<float>(output, batch, "output"),
                                            call_of(workspace, precision, stream));
}

void cuda_factorized_projection_backward(int64_t map, int64_t left, int64_t right, int64_t terms, int64_t max_size,
                                         int64_t batch, int64_t size, int64_t output_gradient, int64_t map_gradient,
                                         int64_t left_gradient, int64_t right_gradient, int64_t workspace,
                                         int64_t precision, int64_t stream) {
  comet::cuda_factorized_projection_backward(projection_of(left, right, terms, max_size, batch, size),
                                             maps<const float>(map, batch, "map"),
                                             maps<const float>(output_gradient, batch, "output_gradient"),
                                             gradients_of(map_gradient, left_gradient, right_gradient),
                                             call_of(workspace, precision, stream));
}

void cuda_projected_mse(int64_t student_map, int64_t teacher_map, int64_t left, int64_t right, int64_t mask,
                        int64_t terms, int64_t max_size, int64_t batch, int64_t size, int64_t loss,
                        int64_t map_gradient, int64_t left_gradient, int64_t right_gradient, int64_t workspace,
                        int64_t precision, int64_t stream) {
  comet::cuda_projected_mse(projection_of(left, right, terms, max_size, batch, size),
                            maps<const float>(student_map, batch, "student_map"),
                            maps<const float>(teacher_map, batch, "teacher_map"), pointer<const uint8_t>(mask),
                            maps<float>(loss, 1, "loss"), gradients_of(map_gradient, left_gradient, right_gradient),
                            call_of(workspace, precision, stream));
}
#else
constexpr bool HAS_CUDA = false;
#endif

}  // namespace

PYBIND11_MODULE(_native, module) {
  using namespace py::literals;
  using unlocked = py::call_guard<py::gil_scoped_release>;
  module.doc() = "Kernels of comet_kernels in C++ and CUDA. Addresses are data_ptr(), sizes and strides in elements.";
  module.attr("__version__") = COMET_VERSION;
  module.attr("INTERFACE") = 2;  // raise it with what a function takes or returns, and in comet_kernels/native.py
  module.def("has_cuda", [] { return HAS_CUDA; });
  module.def("instruction_set", [] { return comet::name(comet::best_instruction_set()); });
  module.def("allow_team", comet::allow_team, "process"_a);
  module.def("has_team", comet::has_team);

  module.def("softened_kl_forward", softened_kl_forward, "student"_a, "teacher"_a, "temperature"_a, "mask"_a, "n"_a,
             "v"_a, "student_stride"_a, "teacher_stride"_a, "student_dtype"_a, "teacher_dtype"_a, "kl"_a,
             "statistics"_a, "threads"_a, "student_bias"_a = 0, "teacher_bias"_a = 0, unlocked());
  module.def("softened_kl_backward", softened_kl_backward, "student"_a, "teacher"_a, "temperature"_a, "mask"_a,
             "scale"_a, "statistics"_a, "n"_a, "v"_a, "student_stride"_a, "teacher_stride"_a, "student_dtype"_a,
             "teacher_dtype"_a, "gradient"_a, "gradient_stride"_a, "gradient_dtype"_a, "threads"_a,
             "student_bias"_a = 0, "teacher_bias"_a = 0, unlocked());

  module.def("factorized_projection_forward", factorized_projection_forward, "map"_a, "left"_a, "right"_a, "terms"_a,
             "max_size"_a, "batch"_a, "size"_a, "output"_a, "threads"_a, unlocked());
  module.def("factorized_projection_backward", factorized_projection_backward, "map"_a, "left"_a, "right"_a,
             "terms"_a, "max_size"_a, "batch"_a, "size"_a, "output_gradient"_a, "map_gradient"_a, "left_gradient"_a,
             "right_gradient"_a, "threads"_a, unlocked());
  module.def("projected_mse", projected_mse, "student_map"_a, "teacher_map"_a, "left"_a, "right"_a, "mask"_a,
             "terms"_a, "max_size"_a, "batch"_a, "size"_a, "loss"_a, "map_gradient"_a, "left_gradient"_a,
             "right_gradient"_a, "threads"_a, unlocked());

#ifdef COMET_HAS_CUDA
  module.def("cuda_projection_workspace_bytes", cuda_projection_workspace_bytes, "terms"_a, "batch"_a, "size"_a,
             "needs_map"_a, "needs_left"_a, "needs_right"_a);
  module.def("cuda_factorized_projection_forward", cuda_factorized_projection_forward, "map"_a, "left"_a, "right"_a,
             "terms"_a, "max_size"_a, "batch"_a, "size"_a, "output"_a, "workspace"_a, "precision"_a, "stream"_a,
             unlocked());
  module.def("cuda_factorized_projection_backward", cuda_factorized_projection_backward, "map"_a, "left"_a, "right"_a,
             "terms"_a, "max_size"_a, "batch"_a, "size"_a, "output_gradient"_a, "map_gradient"_a, "left_gradient"_a,
             "right_gradient"_a, "workspace"_a, "precision"_a, "stream"_a, unlocked());
  module.def("cuda_projected_mse", cuda_projected_mse, "student_map"_a, "teacher_map"_a, "left"_a, "right"_a,
             "mask"_a, "terms"_a, "max_size"_a, "batch"_a, "size"_a, "loss"_a, "map_gradient"_a, "left_gradient"_a,
             "right_gradient"_a, "workspace"_a, "precision"_a, "stream"_a, unlocked());
#endif
}

// Element types of tensors that come from Python.
#pragma once

#include <cstdint>

namespace comet {

enum class Dtype : int64_t { float32 = 0, bfloat16 = 1, float16 = 2 };

constexpr int64_t bytes_of(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

}  // namespace comet

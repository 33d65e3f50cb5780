// The functions of CUDA's runtime that launch kernels.
#pragma once

#include <cstring>
#include <map>
#include <tuple>

#include "threads.h"

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace emulated {

inline int shared_memory_limit = 99 * 1024;  // of a block, once the kernel has asked for it
inline std::map<void*, size_t> shared_memory_asked_for;
inline char* shared_memory = nullptr;

}  // namespace emulated

inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "none" : "invalid value"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = emulated::shared_memory_limit;
  return cudaSuccess;
}

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
  if (bytes > emulated::shared_memory_limit) return cudaErrorInvalidValue;
  emulated::shared_memory_asked_for[reinterpret_cast<void*>(kernel)] = static_cast<size_t>(bytes);
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  using Call = std::pair<void (*)(Parameters...), std::tuple<Parameters...>>;
  const size_t asked = emulated::shared_memory_asked_for[reinterpret_cast<void*>(kernel)];
  const size_t bytes = config->dynamicSmemBytes;
  if (bytes > 48 * 1024 && bytes > asked) return cudaErrorInvalidValue;
  Call call{kernel, {arguments...}};
  emulated::body = [](void* given) { std::apply(static_cast<Call*>(given)->first, static_cast<Call*>(given)->second); };
  emulated::body_arguments = &call;
  static std::vector<emulated::Thread> threads;
  if (threads.size() != config->blockDim.x) threads = std::vector<emulated::Thread>(config->blockDim.x);
  const std::unique_ptr<char[]> memory(new char[bytes]);
  emulated::shared_memory = memory.get();
  for (unsigned block = 0; block < config->gridDim.x; ++block) {
    std::memset(memory.get(), 0xff, bytes);  // NaN
    blockIdx.x = block;
    emulated::run_block(threads);
  }
  return cudaSuccess;
}

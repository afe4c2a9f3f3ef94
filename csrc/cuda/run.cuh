// One launch: its shared memory, its stream, its error.
#pragma once

#include <cstddef>
#include <limits>
#include <utility>

#include "cuda/launch.h"
#include "cuda/ptx.cuh"

namespace mi_pruner::cuda {

constexpr size_t kSharedByDefault = 48 * 1024; // more has to be asked for

struct Shape {
  int64_t blocks;
  unsigned threads;
  size_t shared;            // bytes
  bool cooperative = false; // all blocks are resident at a time
};

template <typename... Parameters, typename... Arguments>
cudaError_t run(void (*kernel)(Parameters...), const Shape& shape, cudaStream_t stream, Arguments&&... arguments) {
  if (shape.blocks <= 0) return cudaSuccess;
  if (shape.blocks > std::numeric_limits<int>::max()) return cudaErrorInvalidConfiguration;
#ifdef MI_PRUNER_CUDA_HOST
  static_cast<void>(stream);
  return host::run(static_cast<unsigned>(shape.blocks), shape.threads, shape.shared, shape.cooperative,
                   [&] { kernel(static_cast<Parameters>(arguments)...); });
#else
  if (shape.shared > kSharedByDefault) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = shape.cooperative ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
#endif
}

// f(T{}) for the type of the features.
template <typename F> cudaError_t by_dtype(Dtype dtype, const F& f) {
  switch (dtype) {
  case Dtype::kFloat16:
    return f(Half{});
  case Dtype::kBFloat16:
    return f(Brain{});
  default:
    return f(float{});
  }
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

} // namespace mi_pruner::cuda

// One launch: its shared memory, its stream, its error.
#pragma once

#include <cstddef>
#include <limits>
#include <type_traits>

#include "cuda/base/arguments.h"
#include "cuda/base/ptx.cuh"

namespace mi_pruner::cuda {

constexpr size_t kSharedByDefault = 48 * 1024; // more has to be asked for

struct Shape {
  int64_t blocks;
  unsigned threads;
  size_t shared;            // bytes
  bool cooperative = false; // all blocks are resident at a time
  unsigned cluster = 1;     // neighbouring blocks that run side by side and see each other's shared memory
  size_t most_shared = 0;   // bytes that another launch of the kernel may have; 0: as many
};

#ifdef MI_PRUNER_CUDA_HOST
template <typename... Parameters>
cudaError_t runs(void (*)(Parameters...), const Shape& shape, bool groups, bool& does) {
  does = (shape.cluster == 1 || host::resident_clusters() > 0) && (!groups || host::has_groups());
  return cudaSuccess;
}
template <typename... Parameters> cudaError_t resident_clusters(void (*)(Parameters...), const Shape&, int& clusters) {
  clusters = host::resident_clusters();
  return cudaSuccess;
}
inline cudaError_t most_shared(int& bytes) {
  bytes = kMostShared;
  return cudaSuccess;
}
inline int64_t row_bytes() { return host::row_bytes(); }
#else
class Launch {
public:
  cudaLaunchConfig_t config{};

  Launch(const Shape& shape, cudaStream_t stream) {
    config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
    config.blockDim = dim3(shape.threads);
    config.dynamicSmemBytes = shape.shared;
    config.stream = stream;
    config.attrs = attributes_;
    if (shape.cooperative) add(cudaLaunchAttributeCooperative).cooperative = 1;
    if (shape.cluster > 1) {
      auto& dimension = add(cudaLaunchAttributeClusterDimension).clusterDim;
      dimension.x = shape.cluster;
      dimension.y = dimension.z = 1;
    }
  }
  Launch(const Launch&) = delete; // it points to itself
  Launch& operator=(const Launch&) = delete;

private:
  cudaLaunchAttributeValue& add(cudaLaunchAttributeID id) {
    cudaLaunchAttribute& attribute = attributes_[config.numAttrs++];
    attribute.id = id;
    return attribute.val;
  }

  cudaLaunchAttribute attributes_[2]{};
};

constexpr int64_t row_bytes() { return kRowBytes; }

// Bytes of shared memory that a block may have on the current device.
inline cudaError_t most_shared(int& bytes) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error == cudaSuccess ? cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) : error;
}

// Whether the current device runs the kernel in this shape: what was compiled for it has a body (else its launch bounds
// say so), and a block may have so much shared memory. `groups`: the kernel multiplies by groups of warps.
template <typename... Parameters>
cudaError_t runs(void (*kernel)(Parameters...), const Shape& shape, bool /* groups: for the host twin */, bool& does) {
  cudaFuncAttributes attributes{};
  int most = 0;
  cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error == cudaSuccess) error = most_shared(most);
  does = error == cudaSuccess && attributes.maxThreadsPerBlock >= static_cast<int>(shape.threads) &&
         static_cast<size_t>(most) >= shape.shared;
  return error;
}

// Clusters of such a launch that the current device runs at a time: none where it has no clusters.
template <typename... Parameters>
cudaError_t resident_clusters(void (*kernel)(Parameters...), const Shape& shape, int& clusters) {
  clusters = 0;
  int device = 0, supported = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&supported, cudaDevAttrClusterLaunch, device);
  if (error != cudaSuccess || supported == 0) return error;
  const Launch launch(shape, nullptr);
  return cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config);
}
#endif

template <typename... Parameters, typename... Arguments>
cudaError_t run(void (*kernel)(Parameters...), const Shape& shape, cudaStream_t stream, Arguments&&... arguments) {
  if (shape.blocks <= 0) return cudaSuccess;
  if (shape.blocks > std::numeric_limits<int>::max()) return cudaErrorInvalidConfiguration;
#ifdef MI_PRUNER_CUDA_HOST
  static_cast<void>(stream);
  return host::run(static_cast<unsigned>(shape.blocks), shape.threads, shape.shared, shape.cooperative, shape.cluster,
                   [&] { kernel(static_cast<Parameters>(arguments)...); });
#else
  if (shape.shared > kSharedByDefault) {
    // Always the same for a kernel: less would be too little for a launch of another thread that is on its way.
    const size_t most = shape.most_shared > shape.shared ? shape.most_shared : shape.shared;
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most));
    if (error != cudaSuccess) return error;
  }
  const Launch launch(shape, stream);
  return cudaLaunchKernelEx(&launch.config, kernel, static_cast<Parameters>(arguments)...);
#endif
}

// The same where the current device runs the kernel so, which `launched` tells; `groups`: see `runs`.
template <typename... Parameters, typename... Arguments>
cudaError_t run_if_it_can(void (*kernel)(Parameters...), const Shape& shape, bool groups, bool& launched,
                          cudaStream_t stream, Arguments&&... arguments) {
  const cudaError_t error = runs(kernel, shape, groups, launched);
  return error == cudaSuccess && launched ? run(kernel, shape, stream, arguments...) : error;
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

// f(mode) for the mode of redundancy, as a type.
template <typename F> cudaError_t by_mode(Redundancy mode, const F& f) {
  switch (mode) {
  case Redundancy::kMean:
    return f(std::integral_constant<Redundancy, Redundancy::kMean>());
  case Redundancy::kChain:
    return f(std::integral_constant<Redundancy, Redundancy::kChain>());
  default:
    return f(std::integral_constant<Redundancy, Redundancy::kMax>());
  }
}

// Of the current device.
inline cudaError_t count_processors(int& processors) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error == cudaSuccess ? cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) : error;
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

} // namespace mi_pruner::cuda

// One launch: its shared memory, its stream, its error.
#pragma once

#include <cstddef>
#include <limits>
#include <map>
#include <mutex>
#include <tuple>
#include <type_traits>

#include "cuda/base/arguments.h"
#include "cuda/base/ptx.cuh"

namespace mi_pruner::cuda {

constexpr size_t kSharedByDefault = 48 * 1024; // more has to be asked for

struct Shape {
  int64_t blocks;
  unsigned threads;
  size_t shared;          // bytes
  unsigned cluster = 1;   // neighbouring blocks that run side by side and see each other's shared memory
  size_t most_shared = 0; // bytes that another launch of the kernel may have; 0: as many
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
inline cudaError_t count_processors(int& processors) {
  processors = host::processors();
  return cudaSuccess;
}
#else
class Launch {
public:
  cudaLaunchConfig_t config{};

  Launch(const Shape& shape, cudaStream_t stream) {
    config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
    config.blockDim = dim3(shape.threads);
    config.dynamicSmemBytes = shape.shared;
    config.stream = stream;
    config.attrs = &attribute_;
    if (shape.cluster == 1) return;
    config.numAttrs = 1;
    attribute_.id = cudaLaunchAttributeClusterDimension;
    attribute_.val.clusterDim.x = shape.cluster;
    attribute_.val.clusterDim.y = attribute_.val.clusterDim.z = 1;
  }
  Launch(const Launch&) = delete; // it points to itself
  Launch& operator=(const Launch&) = delete;

private:
  cudaLaunchAttribute attribute_{};
};

constexpr int64_t row_bytes() { return kRowBytes; }

// Before a launch, where a block has more shared memory than by default. Always the same for a kernel: less would be
// too little for a launch of another thread that is on its way.
template <typename... Parameters> cudaError_t allow_shared(void (*kernel)(Parameters...), const Shape& shape) {
  const size_t most = shape.most_shared > shape.shared ? shape.most_shared : shape.shared;
  if (most <= kSharedByDefault) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most));
}

// What the runtime says about a kernel on the current device (null: about the device): asked once in a process.
template <typename Ask> cudaError_t ask_once(const void* kernel, int64_t question, int& answer, const Ask& ask) {
  static std::mutex mutex;
  static std::map<std::tuple<int, const void*, int64_t>, int> answers;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const std::lock_guard<std::mutex> lock(mutex);
  const std::tuple<int, const void*, int64_t> key(device, kernel, question);
  if (const auto known = answers.find(key); known != answers.end()) {
    answer = known->second;
    return cudaSuccess;
  }
  error = ask(device);
  if (error == cudaSuccess) answers[key] = answer;
  return error;
}

inline cudaError_t attribute(cudaDeviceAttr which, int& value) {
  return ask_once(nullptr, which, value, [&](int device) { return cudaDeviceGetAttribute(&value, which, device); });
}

// Bytes of shared memory that a block may have.
inline cudaError_t most_shared(int& bytes) { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, bytes); }

inline cudaError_t count_processors(int& processors) { return attribute(cudaDevAttrMultiProcessorCount, processors); }

// Clusters of such a launch that the current device runs at a time: none where it has no clusters, or the process so
// small a part of it that none has room.
template <typename... Parameters>
cudaError_t resident_clusters(void (*kernel)(Parameters...), const Shape& shape, int& clusters) {
  clusters = 0;
  int supported = 0;
  const cudaError_t error = attribute(cudaDevAttrClusterLaunch, supported);
  if (error != cudaSuccess || supported == 0) return error;
  const void* const address = reinterpret_cast<const void*>(kernel);
  return ask_once(address, static_cast<int64_t>(shape.shared), clusters, [&](int) {
    const cudaError_t allowed = allow_shared(kernel, shape);
    if (allowed != cudaSuccess) return allowed;
    const Launch launch(shape, nullptr);
    if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config) != cudaSuccess) clusters = 0;
    cudaGetLastError(); // of a cluster that no part of the device has room for
    return cudaSuccess;
  });
}

// Whether the current device runs the kernel in this shape: what was compiled for it has a body (else its launch bounds
// say so), a block may have so much shared memory, and a cluster has room. `groups`: the kernel multiplies by groups of
// warps.
template <typename... Parameters>
cudaError_t runs(void (*kernel)(Parameters...), const Shape& shape, bool /* groups: for the host twin */, bool& does) {
  constexpr int64_t kThreads = -1; // the question, beside bytes
  int threads = 0, most = 0, clusters = 1;
  const void* const address = reinterpret_cast<const void*>(kernel);
  cudaError_t error = ask_once(address, kThreads, threads, [&](int) {
    cudaFuncAttributes attributes{};
    const cudaError_t found = cudaFuncGetAttributes(&attributes, kernel);
    threads = attributes.maxThreadsPerBlock;
    return found;
  });
  if (error == cudaSuccess) error = most_shared(most);
  does =
      error == cudaSuccess && threads >= static_cast<int>(shape.threads) && static_cast<size_t>(most) >= shape.shared;
  if (does && shape.cluster > 1) error = resident_clusters(kernel, shape, clusters);
  does = does && error == cudaSuccess && clusters > 0;
  return error;
}
#endif

template <typename... Parameters, typename... Arguments>
cudaError_t run(void (*kernel)(Parameters...), const Shape& shape, cudaStream_t stream, Arguments&&... arguments) {
  if (shape.blocks <= 0) return cudaSuccess;
  if (shape.blocks > std::numeric_limits<int>::max()) return cudaErrorInvalidConfiguration;
#ifdef MI_PRUNER_CUDA_HOST
  static_cast<void>(stream);
  return host::run(static_cast<unsigned>(shape.blocks), shape.threads, shape.shared, shape.cluster,
                   [&] { kernel(static_cast<Parameters>(arguments)...); });
#else
  const cudaError_t error = allow_shared(kernel, shape);
  if (error != cudaSuccess) return error;
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

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

} // namespace mi_pruner::cuda

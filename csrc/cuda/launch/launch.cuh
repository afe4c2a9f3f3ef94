// One launch: its shared memory, its stream, its error.
#pragma once

#include <cstddef>
#include <limits>
#include <map>
#include <mutex>
#include <type_traits>
#include <utility>

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

class Launch {
public:
  cudaLaunchConfig_t config{};

  Launch(const Shape& shape, cudaStream_t stream) {
    config.gridDim = dim3{static_cast<unsigned>(shape.blocks), 1, 1};
    config.blockDim = dim3{shape.threads, 1, 1};
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

// A kernel on a device: what the runtime was asked about it, or told.
struct Kernel {
  int threads = -1;                                    // that a block may have; not asked: -1
  size_t shared = kSharedByDefault;                    // bytes that a block may have without more ado
  std::map<std::pair<unsigned, size_t>, int> clusters; // by their size and the bytes of a block: how many run at a time
};

// Holds the lock on all of them.
class KnownKernel {
public:
  template <typename... Parameters>
  KnownKernel(void (*kernel)(Parameters...), const Target& target)
      : lock_(mutex()), kernel_(all()[{target.device, reinterpret_cast<const void*>(kernel)}]) {}
  Kernel* operator->() const { return &kernel_; }

private:
  static std::mutex& mutex() {
    static std::mutex mutex;
    return mutex;
  }
  static std::map<std::pair<int, const void*>, Kernel>& all() {
    static std::map<std::pair<int, const void*>, Kernel> all;
    return all;
  }
  const std::lock_guard<std::mutex> lock_;
  Kernel& kernel_;
};

// Before a launch, where a block has more shared memory than by default. Never less than for another launch, which may
// be on its way.
template <typename... Parameters>
cudaError_t allow_shared(const KnownKernel& known, void (*kernel)(Parameters...), const Shape& shape) {
  const size_t most = shape.most_shared > shape.shared ? shape.most_shared : shape.shared;
  if (most <= known->shared) return cudaSuccess;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most));
  if (error == cudaSuccess) known->shared = most;
  return error;
}

// Clusters of such a launch that run at a time: none where the device has no clusters, or the process so small a part
// of it that none has room.
template <typename... Parameters>
cudaError_t resident_clusters(const KnownKernel& known, void (*kernel)(Parameters...), const Shape& shape,
                              const Target& target, int& clusters) {
  clusters = 0;
  if (!target.has_clusters) return cudaSuccess;
  const std::pair size(shape.cluster, shape.shared);
  if (const auto found = known->clusters.find(size); found != known->clusters.end()) {
    clusters = found->second;
    return cudaSuccess;
  }
  const cudaError_t error = allow_shared(known, kernel, shape);
  if (error != cudaSuccess) return error;
  const Launch launch(shape, nullptr);
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config) != cudaSuccess) clusters = 0;
  cudaGetLastError(); // of a cluster that no part of the device has room for
  known->clusters[size] = clusters;
  return cudaSuccess;
}
template <typename... Parameters>
cudaError_t resident_clusters(void (*kernel)(Parameters...), const Shape& shape, const Target& target, int& clusters) {
  return resident_clusters(KnownKernel(kernel, target), kernel, shape, target, clusters);
}

// Whether the target runs the kernel in this shape: what was compiled for it has a body (else its launch bounds say
// so), a block may have so much shared memory, and a cluster has room. `groups`: the kernel multiplies by groups of
// warps.
template <typename... Parameters>
cudaError_t runs(void (*kernel)(Parameters...), const Shape& shape, [[maybe_unused]] bool groups, const Target& target,
                 bool& does) {
  does = false;
  const KnownKernel known(kernel, target);
  if (known->threads < 0) {
    cudaFuncAttributes attributes{};
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) return error;
    known->threads = attributes.maxThreadsPerBlock;
  }
  does = known->threads >= static_cast<int>(shape.threads) && target.most_shared >= shape.shared;
#ifdef MI_PRUNER_CUDA_HOST
  does = does && (!groups || host::has_groups());
#endif
  if (!does || shape.cluster == 1) return cudaSuccess;
  int clusters = 0;
  const cudaError_t error = resident_clusters(known, kernel, shape, target, clusters);
  does = error == cudaSuccess && clusters > 0;
  return error;
}

template <typename... Parameters, typename... Arguments>
cudaError_t run(void (*kernel)(Parameters...), const Shape& shape, const Target& target, Arguments&&... arguments) {
  if (shape.blocks <= 0) return cudaSuccess;
  if (shape.blocks > std::numeric_limits<int>::max()) return cudaErrorInvalidConfiguration;
  if (shape.shared > kSharedByDefault || shape.most_shared > kSharedByDefault) {
    const cudaError_t error = allow_shared(KnownKernel(kernel, target), kernel, shape);
    if (error != cudaSuccess) return error;
  }
  const Launch launch(shape, target.stream);
  return cudaLaunchKernelEx(&launch.config, kernel, static_cast<Parameters>(arguments)...);
}

// The same where the target runs the kernel so, which `launched` tells; `groups`: see `runs`.
template <typename... Parameters, typename... Arguments>
cudaError_t run_if_it_can(void (*kernel)(Parameters...), const Shape& shape, bool groups, bool& launched,
                          const Target& target, Arguments&&... arguments) {
  const cudaError_t error = runs(kernel, shape, groups, target, launched);
  return error == cudaSuccess && launched ? run(kernel, shape, target, arguments...) : error;
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

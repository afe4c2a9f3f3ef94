#include <map>
#include <mutex>

#include "cuda/launch/launches.h"

namespace mi_pruner::cuda {

cudaError_t find_target(int device, cudaStream_t stream, Target& target) {
  static std::mutex mutex;
  static std::map<int, Target> known;
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = known.find(device);
  if (found == known.end()) {
    int processors = 0, most_shared = 0, has_clusters = 0;
    cudaError_t error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess)
      error = cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&has_clusters, cudaDevAttrClusterLaunch, device);
    if (error != cudaSuccess) return error;
    found = known.emplace(device, Target{device, processors, static_cast<size_t>(most_shared), has_clusters != 0, {}})
                .first;
  }
  target = found->second;
  target.stream = stream;
  return cudaSuccess;
}

} // namespace mi_pruner::cuda

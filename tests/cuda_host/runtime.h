// The functions of the CUDA runtime that launches call: of the devices that `host::device` numbers.
#pragma once

const char* cudaGetErrorString(cudaError_t error);
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrClusterLaunch
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeNone, cudaLaunchAttributeClusterDimension };
struct cudaFuncAttributes {
  int maxThreadsPerBlock;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

// So far, for the tests to count: calls of the functions below but for launches.
extern "C" unsigned mi_pruner_host_questions;

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  ++mi_pruner_host_questions;
  *value = attribute == cudaDevAttrMultiProcessorCount ? mi_pruner::cuda::host::processors()
           : attribute == cudaDevAttrClusterLaunch     ? mi_pruner::cuda::host::resident_clusters() > 0
                                                       : 99 * 1024; // the least that a device has
  return cudaSuccess;
}

template <typename... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*)(Parameters...)) {
  ++mi_pruner_host_questions;
  attributes->maxThreadsPerBlock = 1024;
  return cudaSuccess;
}

template <typename... Parameters> cudaError_t cudaFuncSetAttribute(void (*)(Parameters...), cudaFuncAttribute, int) {
  ++mi_pruner_host_questions;
  return cudaSuccess;
}

template <typename... Parameters>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, void (*)(Parameters...), const cudaLaunchConfig_t*) {
  ++mi_pruner_host_questions;
  *clusters = mi_pruner::cuda::host::resident_clusters();
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const unsigned cluster = config->numAttrs == 0 ? 1 : config->attrs[0].val.clusterDim.x;
  return mi_pruner::cuda::host::run(config->gridDim.x, config->blockDim.x, config->dynamicSmemBytes, cluster,
                                    [&] { kernel(static_cast<Parameters>(arguments)...); });
}

// Whether this library can run on the GPUs that are there, each by itself. Looks at versions and properties only: no
// context is made.
#include <cstdio>

#include <cuda_runtime_api.h>

namespace {

// MI_PRUNER_PTX: the oldest architecture, 100 for 10.0, of which there is PTX for what is newer; 0: none.
constexpr int kArchitectures[] = {__CUDA_ARCH_LIST__}; // 800 for 8.0

bool runs_on(int capability) { // 90 for 9.0
  for (const int architecture : kArchitectures) {
    const int compiled = architecture / 10;
    if (compiled / 10 == capability / 10 && compiled <= capability) return true;
  }
  return MI_PRUNER_PTX > 0 && capability >= MI_PRUNER_PTX;
}

} // namespace

// Null: it can run on this device; -1: on any. Otherwise why not, in memory that lasts until the next call.
extern "C" __attribute__((visibility("default"))) const char* mi_pruner_cuda_unusable(int device) {
  static thread_local char why[160];
  int driver = 0, devices = 0;
  cudaError_t error = cudaDriverGetVersion(&driver);
  if (error == cudaSuccess && driver == 0) return "no NVIDIA driver";
  if (error == cudaSuccess && driver / 1000 < CUDART_VERSION / 1000) {
    std::snprintf(why, sizeof why, "built with CUDA %d, but the driver supports CUDA up to %d.%d",
                  CUDART_VERSION / 1000, driver / 1000, driver % 1000 / 10);
    return why;
  }
  if (error == cudaSuccess) error = cudaGetDeviceCount(&devices);
  const int end = device < 0 ? devices : device + 1;
  std::snprintf(why, sizeof why, "no GPU");
  for (device = device < 0 ? 0 : device; error == cudaSuccess && device < end; ++device) {
    int major = 0, minor = 0;
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (error == cudaSuccess && runs_on(10 * major + minor)) return nullptr;
    std::snprintf(why, sizeof why, "not built for device %d, of compute capability %d.%d", device, major, minor);
  }
  if (error == cudaSuccess) return why;
  cudaGetLastError();
  std::snprintf(why, sizeof why, "%s", cudaGetErrorString(error));
  return why;
}

// Whether this library can run on the GPUs that are there. Looks at versions and properties only: no context is made.
#include <cstdio>

#include <cuda_runtime_api.h>

namespace {

constexpr int kArchitectures[] = {__CUDA_ARCH_LIST__}; // 800 for 8.0; PTX of the last one serves what is newer

bool runs_on(int capability) { // 90 for 9.0
  int newest = 0;
  for (const int architecture : kArchitectures) {
    const int compiled = architecture / 10;
    if (compiled / 10 == capability / 10 && compiled <= capability) return true;
    newest = compiled > newest ? compiled : newest;
  }
  return capability > newest;
}

} // namespace

// Null: it can. Otherwise why not, in memory that lasts until the next call.
extern "C" __attribute__((visibility("default"))) const char* mi_pruner_cuda_unusable() {
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
  for (int device = 0; error == cudaSuccess && device < devices; ++device) {
    int major = 0, minor = 0;
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (error == cudaSuccess && !runs_on(10 * major + minor)) {
      std::snprintf(why, sizeof why, "not built for device %d, of compute capability %d.%d", device, major, minor);
      return why;
    }
  }
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  std::snprintf(why, sizeof why, "%s", cudaGetErrorString(error));
  return why;
}

// Tensors as the launches know them: layouts, features, the current stream. The operators' checks of memory.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <optional>

#include <torch/csrc/stable/accelerator.h>

#include "check.h"
#include "cuda/base/arguments.h"

#ifndef MI_PRUNER_CUDA_HOST
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
#endif

namespace mi_pruner::cuda {

// The device's current stream. libtorch_cuda.so is there wherever CUDA tensors are, but is not linked: the same file
// loads beside a CPU build of torch. Where it was loaded out of sight of the weak symbol, it is asked by name.
inline cudaStream_t current_stream([[maybe_unused]] const Tensor& tensor) {
  void* stream = nullptr;
#ifndef MI_PRUNER_CUDA_HOST
  using Getter = int32_t (*)(int32_t, void**);
  static const Getter getter = [] {
    if (aoti_torch_get_current_cuda_stream != nullptr) return &aoti_torch_get_current_cuda_stream;
    void* library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
    return library == nullptr ? nullptr
                              : reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  STD_TORCH_CHECK(getter != nullptr && getter(tensor.get_device_index(), &stream) == 0,
                  "no current stream: libtorch_cuda.so lacks aoti_torch_get_current_cuda_stream");
#endif
  return static_cast<cudaStream_t>(stream);
}

#ifdef MI_PRUNER_CUDA_HOST
struct Guard {
  explicit Guard(const Tensor&) {}
};
inline int device_of(const Tensor&) { return host::device(); }
#else
inline int device_of(const Tensor& tensor) { return tensor.get_device_index(); }
struct Guard : torch::stable::accelerator::DeviceGuard {
  explicit Guard(const Tensor& tensor) : DeviceGuard(tensor.get_device_index()) {}
};
#endif

inline Dtype dtype_of(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Half || type == ScalarType::BFloat16 || type == ScalarType::Float,
                  "features: unsupported dtype");
  return type == ScalarType::Half ? Dtype::kFloat16 : type == ScalarType::BFloat16 ? Dtype::kBFloat16 : Dtype::kFloat32;
}

inline int64_t element_of(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::Float ? 4 : 2; }

inline const float* floats(const char* name, const OptionalTensor& tensor, int64_t count) {
  if (!tensor) return nullptr;
  check_array(name, *tensor, count, ScalarType::Float);
  return tensor->const_data_ptr<float>();
}

inline Layout packed_layout(const char* name, const Tensor& cu, int64_t total, int64_t longest) {
  check_array(name, cu, std::max<int64_t>(cu.numel(), 1), ScalarType::Int);
  return {cu.const_data_ptr<int32_t>(), cu.numel() - 1, total, std::min(longest, total)};
}

inline Tokens tokens_of(const char* name, const Tensor& tensor, const Layout& layout, const OptionalTensor& prior) {
  const int64_t last = tensor.dim() - 1, element = element_of(tensor);
  const int64_t batch_stride = layout.packed() ? 0 : tensor.stride(0), stride = tensor.stride(last - 1);
  // Tiles reckon with distances of 32 bits: in pieces of 16 bytes over a sample, in bytes over 32 of its tokens.
  const bool near = (layout.longest == 0 || stride * element / 16 <= 0x7fffffff / layout.longest) &&
                    stride * element < int64_t{1} << 27;
  const bool aligned = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0 &&
                       batch_stride * element % 16 == 0 && stride * element % 16 == 0 && near;
  return {layout, tensor.const_data_ptr(), batch_stride, stride, aligned, floats(name, prior, layout.total)};
}

inline Tokens dense_tokens(const char* prior_name, const Tensor& tensor, const OptionalTensor& prior) {
  const int64_t samples = tensor.size(0), count = tensor.size(1);
  return tokens_of(prior_name, tensor, {nullptr, samples, samples * count, count}, prior);
}

inline Tokens no_tokens(const Tokens& visual) {
  return {{nullptr, visual.layout.samples, 0, 0}, visual.features, 0, 0, visual.aligned, nullptr};
}

constexpr int64_t tiles(int64_t count, int64_t size) { return (count + size - 1) / size; }

inline Layout dense_slots(const Tensor& visual, int64_t keep) {
  return {nullptr, visual.size(0), visual.size(0) * keep, keep};
}

inline Layout packed_slots(const Tensor& cu_keep, const Tensor& cu_visual, int64_t max_keep, int64_t total_keep) {
  STD_TORCH_CHECK(cu_keep.numel() == cu_visual.numel(), "cu_keep: wrong shape");
  return packed_layout("cu_keep", cu_keep, total_keep, max_keep);
}

inline void check_both(const Tensor& visual, const Tensor& text, int64_t dim) {
  check_features("visual", visual, dim, visual.scalar_type());
  check_features("text", text, dim, visual.scalar_type());
  STD_TORCH_CHECK(text.size(dim - 1) == visual.size(dim - 1) && (dim == 2 || text.size(0) == visual.size(0)),
                  "text: wrong shape");
}

} // namespace mi_pruner::cuda

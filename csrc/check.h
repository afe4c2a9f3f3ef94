// What memory safety needs; the errors that users see are raised in mi_pruner/_checks.py before a kernel is called.
#pragma once

#include <optional>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace mi_pruner {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline void check_features(const char* name, const Tensor& tensor, int64_t dim, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.dim() == dim && tensor.scalar_type() == dtype, name, ": wrong rank or dtype");
  STD_TORCH_CHECK(tensor.stride(dim - 1) == 1 || tensor.size(dim - 1) <= 1 || tensor.numel() == 0, name,
                  ": last dimension not contiguous");
}

inline void check_array(const char* name, const Tensor& tensor, int64_t numel, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.numel() == numel && tensor.scalar_type() == dtype && tensor.is_contiguous(), name,
                  ": expected ", numel, " contiguous elements of the accumulation or index dtype");
}

// As aoti_torch_device_type_cpu() and its like say it.
inline int32_t device_type(const Tensor& tensor) {
  int32_t type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  return type;
}

inline ScalarType accumulation(const Tensor& visual) {
  return visual.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

} // namespace mi_pruner

// New tensors, by the shim's own functions: those that go to the dispatcher by an operator's name cost four times as
// much.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "check.h"

namespace mi_pruner {

// Contiguous and not initialised, on the device of `like`.
inline Tensor new_tensor(const Tensor& like, const int64_t* sizes, int64_t dim, ScalarType dtype) {
  constexpr int64_t kMostDims = 3;
  STD_TORCH_CHECK(dim <= kMostDims, "new_tensor: too many dimensions");
  int64_t strides[kMostDims];
  uint64_t stride = 1; // more than fit are PyTorch's to refuse
  for (int64_t i = dim - 1; i >= 0; --i) {
    strides[i] = static_cast<int64_t>(stride);
    stride *= sizes[i] > 0 ? static_cast<uint64_t>(sizes[i]) : 1;
  }
  const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle made = nullptr;
  const auto failed =
      aoti_torch_empty_strided(dim, sizes, strides, code, device_type(like), like.get_device_index(), &made);
  STD_TORCH_CHECK(failed == AOTI_TORCH_SUCCESS, "mi_pruner: PyTorch can't make a tensor of ", stride, " elements of ",
                  torch::headeronly::toString(dtype), " (out of memory?)");
  return Tensor(made);
}

inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return new_tensor(like, sizes.begin(), static_cast<int64_t>(sizes.size()), dtype);
}

// The same numbers, contiguous and in another dtype.
inline Tensor copy_of(const Tensor& tensor, ScalarType dtype) {
  const Tensor copy = new_tensor(tensor, tensor.sizes().data(), tensor.dim(), dtype);
  TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(copy.get(), tensor.get(), 0));
  return copy;
}

} // namespace mi_pruner

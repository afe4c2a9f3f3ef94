// Tensors as the kernels know them: samples, their rows, their place in arrays over all.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "check.h"
#include "cpu/parallel.h"
#include "cpu/sample.h"

namespace mi_pruner::cpu {

// One sample's place in arrays over all tokens (or over all slots of the output).
struct Span {
  int64_t begin;
  int64_t count;
};

struct Sample {
  Rows rows;
  Span span;
};

inline Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
  case ScalarType::Half:
    return Dtype::kFloat16;
  case ScalarType::BFloat16:
    return Dtype::kBFloat16;
  case ScalarType::Float:
    return Dtype::kFloat32;
  case ScalarType::Double:
    return Dtype::kFloat64;
  default:
    STD_TORCH_CHECK(false, "features: unsupported dtype");
  }
}

inline int64_t bytes(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2; }

inline Rows rows_at(const Tensor& tensor, int64_t offset, int64_t count) {
  const int64_t last = tensor.dim() - 1;
  const Dtype dtype = dtype_of(tensor);
  return {static_cast<const char*>(tensor.const_data_ptr()) + offset * bytes(dtype), tensor.stride(last - 1), count,
          tensor.size(last), dtype};
}

inline std::vector<Sample> dense_samples(const Tensor& tensor) {
  std::vector<Sample> samples;
  for (int64_t b = 0; b < tensor.size(0); ++b)
    samples.push_back({rows_at(tensor, b * tensor.stride(0), tensor.size(1)), {b * tensor.size(1), tensor.size(1)}});
  return samples;
}

inline std::vector<Span> dense_spans(int64_t samples, int64_t count) {
  std::vector<Span> spans;
  for (int64_t b = 0; b < samples; ++b)
    spans.push_back({b * count, count});
  return spans;
}

// What cu says is clamped to [0, total], to be non-decreasing (so no two samples overlap), and to the longest length.
inline std::vector<Span> packed_spans(const char* name, const Tensor& cu, int64_t total, int64_t longest) {
  check_array(name, cu, std::max<int64_t>(cu.numel(), 1), ScalarType::Int);
  const int32_t* ends = cu.const_data_ptr<int32_t>();
  std::vector<Span> spans;
  int64_t begin = std::clamp<int64_t>(ends[0], 0, total);
  for (int64_t b = 1; b < cu.numel(); ++b) {
    const int64_t end = std::clamp<int64_t>(ends[b], begin, total);
    spans.push_back({begin, std::min(end - begin, longest)});
    begin = end;
  }
  return spans;
}

inline std::vector<Sample> packed_samples(const char* name, const Tensor& tensor, const Tensor& cu, int64_t longest) {
  std::vector<Sample> samples;
  for (const Span& span : packed_spans(name, cu, tensor.size(0), longest))
    samples.push_back({rows_at(tensor, span.begin * tensor.stride(0), span.count), span});
  return samples;
}

// body(b) for every sample: in parallel where they are enough for all threads, else one after another, each in parallel
// within.
template <typename Body> void for_each_sample(size_t count, const Body& body) {
  if (count < torch::stable::get_num_threads()) {
    for (size_t b = 0; b < count; ++b)
      body(b);
  } else {
    parallel_for(static_cast<int64_t>(count), kShare, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        body(b);
    });
  }
}

template <typename Acc> const Acc* array(const char* name, const OptionalTensor& tensor, int64_t numel) {
  if (!tensor) return nullptr;
  check_array(name, *tensor, numel, sizeof(Acc) == 8 ? ScalarType::Double : ScalarType::Float);
  return tensor->const_data_ptr<Acc>();
}

template <typename Acc> const Acc* of_sample(const Acc* values, const Sample& sample) {
  return values == nullptr ? nullptr : values + sample.span.begin;
}

} // namespace mi_pruner::cpu

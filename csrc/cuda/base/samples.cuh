// Where a sample's tokens, and its slots in the outputs, lie.
#pragma once

#include "cuda/base/arguments.h"
#include "cuda/base/ptx.cuh"

namespace mi_pruner::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;

// Entries [begin, begin + count) of an array over all samples are the sample's; it also clears what no sample owns of
// [first, last): these ranges of all samples cover the array, and don't overlap.
struct Span {
  int64_t begin, count, first, last;

  // f(entry) for the sample's share of what no sample owns, `members` threads taking turns.
  template <typename F> __device__ void for_each_unowned(int64_t member, int64_t members, const F& f) const {
#pragma unroll 1
    for (int64_t at = first + member; at < begin; at += members)
      f(at);
#pragma unroll 1
    for (int64_t at = begin + count + member; at < last; at += members)
      f(at);
  }
};

// To be called by whole warps. Dense: `longest` entries a sample. Packed: what `cu` says is clamped to [0, total], to
// be non-decreasing, and to the longest length, as the CPU backend does.
__device__ inline Span span_of(const Layout& layout, int64_t sample) {
  if (layout.cu == nullptr) {
    const int64_t begin = sample * layout.longest;
    return {begin, layout.longest, begin, begin + layout.longest};
  }
  const int total = static_cast<int>(layout.total < 0x7fffffff ? layout.total : 0x7fffffff);
  unsigned begin = 0, end = 0;
#pragma unroll 4 // 128 samples at once; the sixteen that the compiler would take are most of a kernel's code
  for (int64_t k = threadIdx.x % 32; k <= sample + 1; k += 32) {
    const int entry = layout.cu[k];
    const unsigned clamped = static_cast<unsigned>(entry < 0 ? 0 : entry < total ? entry : total);
    end = clamped > end ? clamped : end;
    if (k <= sample && clamped > begin) begin = clamped;
  }
  begin = __reduce_max_sync(kFullWarp, begin);
  end = __reduce_max_sync(kFullWarp, end);
  const int64_t count = end - begin < layout.longest ? end - begin : layout.longest;
  return {begin, count, sample == 0 ? 0 : int64_t{begin}, sample + 1 == layout.samples ? layout.total : int64_t{end}};
}

// Rows of features, `stride` elements apart.
template <typename T> struct Rows {
  const T* base;
  int64_t stride;
  bool aligned; // every row starts at a multiple of 16 bytes
};

template <typename T> __device__ Rows<T> rows_of(const Tokens& tokens, int64_t sample, const Span& span) {
  const int64_t offset = tokens.layout.cu == nullptr ? sample * tokens.batch_stride : span.begin * tokens.stride;
  return {static_cast<const T*>(tokens.features) + offset, tokens.stride, tokens.aligned};
}

} // namespace mi_pruner::cuda

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

// Where a packed sample begins, and the next one does.
struct Ends {
  unsigned begin, end;
};

// What is given up to the sample's end, clamped to [0, total] and made non-decreasing, as the CPU backend does: by a
// warp, which reads all of it.
__device__ inline Ends find_ends(const Layout& layout, int64_t sample) {
  const int total = static_cast<int>(layout.total < 0x7fffffff ? layout.total : 0x7fffffff);
  unsigned begin = 0, end = 0;
#pragma unroll 4 // 128 samples at once; the sixteen that the compiler would take are much code
  for (int64_t k = threadIdx.x % 32; k <= sample + 1; k += 32) {
    const int entry = layout.given[k];
    const unsigned clamped = static_cast<unsigned>(entry < 0 ? 0 : entry < total ? entry : total);
    end = clamped > end ? clamped : end;
    if (k <= sample && clamped > begin) begin = clamped;
  }
  return {__reduce_max_sync(kFullWarp, begin), __reduce_max_sync(kFullWarp, end)};
}

// `ends`: if it is packed.
__device__ inline Span span_of(const Layout& layout, int64_t sample, const Ends& ends) {
  if (!layout.packed()) {
    const int64_t begin = sample * layout.longest;
    return {begin, layout.longest, begin, begin + layout.longest};
  }
  const int64_t length = ends.end - ends.begin, count = length < layout.longest ? length : layout.longest;
  return {ends.begin, count, sample == 0 ? 0 : ends.begin, sample + 1 == layout.samples ? layout.total : ends.end};
}

// For the launches after the similarities.
__device__ inline Span span_of(const Layout& layout, int64_t sample) {
  return span_of(layout, sample, layout.packed() ? Ends{layout.cu[sample], layout.cu[sample + 1]} : Ends{});
}

// Rows of features, `stride` elements apart.
template <typename T> struct Rows {
  const T* base;
  int64_t stride;
  bool aligned; // every row starts at a multiple of 16 bytes
};

template <typename T> __device__ Rows<T> rows_of(const Tokens& tokens, int64_t sample, const Span& span) {
  const int64_t offset = tokens.layout.packed() ? span.begin * tokens.stride : sample * tokens.batch_stride;
  return {static_cast<const T*>(tokens.features) + offset, tokens.stride, tokens.aligned};
}

} // namespace mi_pruner::cuda

// The kept tokens in ascending order of their indices: order and copy in one launch.
//
// Algorithm: a pick's place is the number of picks of lower index. Unused slots (-1) come last, with zero tokens.
// Mapping: a block a slot: it counts, then copies a row, 16 bytes a thread.
// Bytes: 2 x the kept tokens, and K indices a block (from L2). Bound by memory.
#pragma once

#include "cuda/base/samples.cuh"

namespace mi_pruner::cuda {

constexpr int kGatherThreads = 128; // 2 KB at a time: 8 KB of 4096 halves are 4 turns

// `bytes` from `from` (null: zeros) to `to` by the block, a word at a time.
template <typename Word> __device__ void copy_row(const unsigned char* from, unsigned char* to, int64_t bytes) {
  for (int64_t at = threadIdx.x; at < bytes / int64_t{sizeof(Word)}; at += blockDim.x)
    reinterpret_cast<Word*>(to)[at] = from == nullptr ? Word{} : reinterpret_cast<const Word*>(from)[at];
}

__device__ inline void copy_token(const Tokens& visual, int64_t sample, const Span& span, int64_t index, int64_t dim,
                                  int64_t element, unsigned char* to) {
  const int64_t bytes = dim * element;
  const unsigned char* from = nullptr;
  if (index >= 0) {
    const int64_t offset = visual.layout.packed() ? span.begin * visual.stride : sample * visual.batch_stride;
    from = static_cast<const unsigned char*>(visual.features) + (offset + index * visual.stride) * element;
  }
  if (visual.aligned && bytes % 16 == 0)
    copy_row<uint4>(from, to, bytes);
  else if (element == 4)
    copy_row<uint32_t>(from, to, bytes);
  else
    copy_row<uint16_t>(from, to, bytes);
}

__global__ void __launch_bounds__(kGatherThreads)
    gather_kernel(const Tokens visual, const int64_t dim, const int64_t element, const Picks picks,
                  unsigned char* const tokens, int64_t* const sorted_indices, float* const sorted_gains,
                  const unsigned programs) {
  const unsigned program = blockIdx.x % programs, sample = blockIdx.x / programs;
  const Span span = span_of(visual.layout, sample), slots = span_of(picks.slots, sample);
  const auto write = [&](int64_t slot, int64_t index, float gain) {
    if (threadIdx.x == 0) {
      sorted_indices[slot] = index;
      sorted_gains[slot] = gain;
    }
    copy_token(visual, sample, span, index, dim, element, tokens + slot * dim * element);
  };
  slots.for_each_unowned(program, programs, [&](int64_t slot) { write(slot, -1, -__int_as_float(0x7f800000)); });
  if (program >= slots.count) return;
  const auto order = [&](int64_t slot) {
    const int64_t index = picks.indices[slots.begin + slot];
    return index < 0 ? span.count + slot : index;
  };
  const int64_t mine = order(program);
  int64_t place = 0;
  for (int64_t first = 0; first < slots.count; first += kGatherThreads) {
    const int64_t slot = first + threadIdx.x;
    place += __syncthreads_count(slot < slots.count && order(slot) < mine);
  }
  write(slots.begin + place, picks.indices[slots.begin + program], picks.gains[slots.begin + program]);
}

} // namespace mi_pruner::cuda

// The kept tokens in ascending order of their indices: order and copy in one launch.
//
// Algorithm: a pick's place is the number of picks of lower index. Unused slots (-1) come last, with zero tokens.
// Mapping: a block a slot: while it counts, the row that it copies is on its way, 16 bytes a thread.
// Bytes: 2 x the kept tokens, and K indices a block (from L2). Bound by memory.
#pragma once

#include "cuda/base/samples.cuh"

namespace mi_pruner::cuda {

constexpr int kGatherThreads = 128;
constexpr int kGatherWords = 4; // of a thread, at a time: 8 KB of a row, 4096 halves

// A row from `from` (null: zeros), a word of so many bytes at a time, by the block.
template <typename Word> class RowCopy {
public:
  __device__ RowCopy(const unsigned char* from, int64_t bytes)
      : from_(reinterpret_cast<const Word*>(from)), words_(bytes / int64_t{sizeof(Word)}) {
    load(0);
  }

  __device__ void store(unsigned char* to) {
    for (int64_t first = 0; first < words_; first += kAtOnce) {
      if (first > 0) load(first);
#pragma unroll
      for (int k = 0; k < kGatherWords; ++k)
        if (place(first, k) < words_) reinterpret_cast<Word*>(to)[place(first, k)] = held_[k];
    }
  }

private:
  static constexpr int kAtOnce = kGatherThreads * kGatherWords;

  static __device__ int64_t place(int64_t first, int k) { return first + k * kGatherThreads + threadIdx.x; }

  __device__ void load(int64_t first) {
#pragma unroll
    for (int k = 0; k < kGatherWords; ++k)
      held_[k] = from_ != nullptr && place(first, k) < words_ ? from_[place(first, k)] : Word{};
  }

  const Word* const from_;
  const int64_t words_;
  Word held_[kGatherWords];
};

// `bytes`: of a token, `element`: of a feature.
template <typename Word>
__global__ void __launch_bounds__(kGatherThreads)
    gather_kernel(const Tokens visual, const int64_t bytes, const int64_t element, const Picks picks,
                  unsigned char* const tokens, int64_t* const sorted_indices, float* const sorted_gains,
                  const unsigned programs) {
  const unsigned program = blockIdx.x % programs, sample = blockIdx.x / programs;
  const Span span = span_of(visual.layout, sample), slots = span_of(picks.slots, sample);
  const auto write = [&](int64_t slot, int64_t index, float gain, RowCopy<Word>& row) {
    if (threadIdx.x == 0) {
      sorted_indices[slot] = index;
      sorted_gains[slot] = gain;
    }
    row.store(tokens + slot * bytes);
  };
  slots.for_each_unowned(program, programs, [&](int64_t slot) {
    RowCopy<Word> zeros(nullptr, bytes);
    write(slot, -1, -__int_as_float(0x7f800000), zeros);
  });
  if (program >= slots.count) return;
  const int64_t* const indices = picks.indices + slots.begin;
  const int64_t index = indices[program],
                first = visual.layout.packed() ? span.begin * visual.stride : sample * visual.batch_stride;
  const auto* const features = static_cast<const unsigned char*>(visual.features);
  RowCopy<Word> row(index < 0 ? nullptr : features + (first + index * visual.stride) * element, bytes);
  const auto order = [&](int64_t slot) { return indices[slot] < 0 ? span.count + slot : indices[slot]; };
  const int64_t mine = order(program);
  int64_t place = 0;
  for (int64_t from = 0; from < slots.count; from += kGatherThreads) {
    const int64_t slot = from + threadIdx.x;
    place += __syncthreads_count(slot < slots.count && order(slot) < mine);
  }
  write(slots.begin + place, index, picks.gains[slots.begin + program], row);
}

} // namespace mi_pruner::cuda

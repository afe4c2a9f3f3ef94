// Selection without redundancy: a token's place is the number of keys above its own.
//
// Mapping: a block for 256 tokens of a sample, which meet all of its keys, 256 at a time, in shared memory.
// Cost: N^2 comparisons, 2 N floats read a block. Bound by shared memory; exact, whatever the duplicates.
#pragma once

#include "cuda/greedy/picks.cuh"

namespace mi_pruner::cuda {

constexpr int kTopKThreads = 256;

struct TopKShared {
  uint64_t keys[kTopKThreads];
};

__global__ void __launch_bounds__(kTopKThreads)
    top_k_kernel(const Layout visual, const float* const scores, const float* const log_prior, const Picks picks,
                 const unsigned programs) {
  MI_PRUNER_SHARED(TopKShared, shared);
  const unsigned program = blockIdx.x % programs, sample = blockIdx.x / programs;
  const Span span = span_of(visual, sample), slots = span_of(picks.slots, sample);
  const auto key_at = [&](int64_t i) -> uint64_t {
    if (i >= span.count || log_prior[span.begin + i] == -MI_PRUNER_INFINITY) return 0;
    const float score = pickable(scores[span.begin + i]);
    return score < picks.min_gain ? 0 : key_of(score, i);
  };
  const int64_t index = int64_t{program} * kTopKThreads + threadIdx.x;
  const uint64_t mine = key_at(index);
  int64_t rank = 0, eligible = 0;
  for (int64_t first = 0; first < span.count; first += kTopKThreads) {
    const uint64_t key = key_at(first + threadIdx.x);
    shared.keys[threadIdx.x] = key;
    eligible += __syncthreads_count(key != 0);
    if (mine != 0)
      for (int k = 0; k < kTopKThreads; ++k)
        rank += shared.keys[k] > mine;
    __syncthreads();
  }
  int64_t limit = limit_of(picks, sample, span, slots);
  limit = eligible < limit ? eligible : limit;
  if (mine != 0 && rank < limit) {
    picks.indices[slots.begin + rank] = index;
    picks.gains[slots.begin + rank] = gain_of(mine);
  }
  clear_slots(picks, slots, limit, index, int64_t{programs} * kTopKThreads);
}

} // namespace mi_pruner::cuda

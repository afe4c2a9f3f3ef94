// Greedy selection of a sample by one block, from the cosines of all visual tokens with each other.
//
// Algorithm: a step takes the largest gain (the lowest index among equals: both in one 64-bit key), writes it, and
// adds the redundancy of the pick with every token, which follows from the pick's row of cosines and its normaliser.
//
// Mapping: block = sample, 4 tokens a thread, in registers for the whole selection: score, rho, log prior. A step: 4
// exponentials a thread, two warp reductions of 2 `redux` each, one barrier, one row read. The warps that hold the
// runners-up ask for their rows beside it: the next pick is mostly one of them, or of those of earlier steps.
//
// Bound by latency: about 60 cycles for the reductions, a barrier, and a read of L1 (prefetched) or L2.
// Determinism: no sum crosses threads; the sum over the picks runs in their order.
#pragma once

#include "cuda/quad.cuh"

namespace mi_pruner::cuda {

constexpr int kGreedyThreads = 1024; // a quad each: 4096 tokens
constexpr int kCacheLine = 128;
// Runners-up whose rows are fetched: more bring few hits, and a row of every warp would be more than L1 and its
// bandwidth hold (docs/kernels-cuda.md).
constexpr int kRunnersUp = 4;

struct GreedyShared {
  uint64_t best[2][kMostWarps]; // of the warps, for odd and even steps: one barrier a step is enough
};

__device__ inline uint64_t best_of(const TokenQuad& tokens, float scale) {
  uint64_t best = 0;
#pragma unroll
  for (int e = 0; e < kQuad; ++e) {
    const uint64_t key = tokens.key(e, scale);
    if (key > best) best = key;
  }
  return best;
}

__global__ void __launch_bounds__(kGreedyThreads)
    greedy_kernel(const Layout visual, const float* const scores, const Similarities found, const Densities densities,
                  const Selection selection, const Picks picks) {
  MI_PRUNER_SHARED(GreedyShared, shared);
  const int64_t sample = blockIdx.x;
  const Span span = span_of(visual, sample), slots = span_of(picks.slots, sample);
  const int64_t limit = limit_of(picks, sample, slots);
  const unsigned lane = threadIdx.x % 32, warps = blockDim.x / 32;
  TokenQuad tokens;
  tokens.start(scores, densities.log_prior, span, int64_t{kQuad} * threadIdx.x);
  const float* const gram = found.gram + span.begin * found.gram_stride;
  uint64_t fetched = 0;
  int64_t step = 0;
  while (step < limit) {
    const uint64_t own = warp_best(best_of(tokens, scale_of(selection, step)));
    if (lane == 0) shared.best[step % 2][threadIdx.x / 32] = own;
    __syncthreads();
    const uint64_t other = lane < warps ? shared.best[step % 2][lane] : 0, best = warp_best(other);
    if (best == 0 || gain_of(best) < picks.min_gain) break;
    const int64_t pick = index_of(best);
    if (threadIdx.x == 0) {
      picks.indices[slots.begin + step] = pick;
      picks.gains[slots.begin + step] = gain_of(best);
    }
    if (++step == limit) break;
    tokens.remove(pick);
    const float* const row = gram + pick * found.gram_stride;
    const float4 cosines =
        tokens.first < span.count ? __ldg(reinterpret_cast<const float4*>(row + tokens.first)) : float4{};
    const int rank = __popc(__ballot_sync(kFullWarp, other > own));
    if (own != 0 && rank > 0 && rank <= kRunnersUp && index_of(own) != index_of(fetched)) {
      const char* ahead = reinterpret_cast<const char*>(gram + index_of(own) * found.gram_stride);
      for (int64_t at = lane * kCacheLine; at < span.count * int64_t{sizeof(float)}; at += 32 * kCacheLine)
        prefetch(ahead + at);
      fetched = own;
    }
    const int64_t token = span.begin + pick;
    tokens.join(cosines, __ldg(densities.visual_log_z + token),
                selection.redundancy == Redundancy::kChain ? expf(__ldg(densities.log_prior + token)) : 0.0f, selection,
                step);
  }
  clear_slots(picks, slots, step, threadIdx.x, blockDim.x);
}

} // namespace mi_pruner::cuda

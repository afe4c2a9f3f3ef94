// Greedy selection of a sample by one block, from the cosines of all visual tokens with each other.
//
// Algorithm: a step takes the largest gain (the lowest index among equals: both in one 64-bit key), writes it, and
// adds the redundancy of the pick with every token, which follows from the pick's row of cosines and its normaliser.
//
// Mapping: block = sample, 4 tokens a thread, in registers for the whole selection: score, rho, log prior. A step: 4
// exponentials a thread, two warp reductions of 2 `redux` each, one barrier, one row read. While a step reduces, each
// warp prefetches the row of its own best token: the next pick is mostly one of them.
//
// Bound by latency: about 60 cycles for the reductions, a barrier, and a read of L1 (prefetched) or L2.
// Determinism: no sum crosses threads; the sum over the picks runs in their order.
#pragma once

#include "cuda/gain.cuh"

namespace mi_pruner::cuda {

constexpr int kGreedyTokens = 4; // a thread: one 16-byte read of the row; 4096 tokens fill a block
constexpr int kGreedyThreads = 1024;
constexpr int kCacheLine = 128;

struct GreedyShared {
  uint64_t best[2][kMostWarps]; // of the warps, for odd and even steps: one barrier a step is enough
};

// A thread's tokens.
struct GreedyTokens {
  int64_t first;
  float score[kGreedyTokens], rho[kGreedyTokens], log_prior[kGreedyTokens];
  unsigned available; // a bit each

  __device__ GreedyTokens(const float* scores, const float* priors, const Span& span)
      : first(int64_t{kGreedyTokens} * threadIdx.x), available(0) {
#pragma unroll
    for (int e = 0; e < kGreedyTokens; ++e) {
      const bool inside = first + e < span.count;
      log_prior[e] = inside ? priors[span.begin + first + e] : -MI_PRUNER_INFINITY;
      score[e] = inside ? pickable(scores[span.begin + first + e]) : -MI_PRUNER_INFINITY;
      rho[e] = 0;
      if (log_prior[e] > -MI_PRUNER_INFINITY) available |= 1u << e;
    }
  }

  __device__ uint64_t best(float scale) const {
    uint64_t best = 0;
#pragma unroll
    for (int e = 0; e < kGreedyTokens; ++e) {
      const uint64_t key = key_of(gain_from(score[e], rho[e], scale), first + e);
      if (available >> e & 1 && key > best) best = key;
    }
    return best;
  }

  __device__ void remove(int64_t pick) {
    if (pick >= first && pick < first + kGreedyTokens) available &= ~(1u << (pick - first));
  }

  // `row`: the cosines of the `picked`-th pick.
  __device__ void join(const float* row, float log_z, float prior, const Selection& selection, int64_t picked) {
    if (available == 0) return; // beyond the sample's end, too
    const float4 four = __ldg(reinterpret_cast<const float4*>(row + first));
    const float cosine[kGreedyTokens] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int e = 0; e < kGreedyTokens; ++e)
      if (available >> e & 1)
        rho[e] = joined(rho[e], redundancy_of(cosine[e], log_z, log_prior[e], selection.kappa), selection.redundancy,
                        picked, prior);
  }
};

__global__ void __launch_bounds__(kGreedyThreads)
    greedy_kernel(const Layout visual, const float* const scores, const Similarities found, const Densities densities,
                  const Selection selection, const Picks picks) {
  MI_PRUNER_SHARED(GreedyShared, shared);
  const int64_t sample = blockIdx.x;
  const Span span = span_of(visual, sample), slots = span_of(picks.slots, sample);
  const int64_t limit = limit_of(picks, sample, slots);
  const unsigned lane = threadIdx.x % 32, warps = blockDim.x / 32;
  GreedyTokens tokens(scores, densities.log_prior, span);
  const float* const gram = found.gram + span.begin * found.gram_stride;
  uint64_t fetched = 0;
  int64_t step = 0;
  while (step < limit) {
    uint64_t best = warp_best(tokens.best(scale_of(selection, step)));
    if (lane == 0) shared.best[step % 2][threadIdx.x / 32] = best;
    if (best != 0 && index_of(best) != index_of(fetched)) { // the row of the warp's own best
      const char* row = reinterpret_cast<const char*>(gram + index_of(best) * found.gram_stride);
      for (int64_t at = lane * kCacheLine; at < span.count * int64_t{sizeof(float)}; at += 32 * kCacheLine)
        prefetch(row + at);
      fetched = best;
    }
    __syncthreads();
    best = warp_best(lane < warps ? shared.best[step % 2][lane] : 0);
    if (best == 0 || gain_of(best) < picks.min_gain) break;
    const int64_t pick = index_of(best);
    if (threadIdx.x == 0) {
      picks.indices[slots.begin + step] = pick;
      picks.gains[slots.begin + step] = gain_of(best);
    }
    if (++step == limit) break;
    tokens.remove(pick);
    const int64_t token = span.begin + pick;
    tokens.join(gram + pick * found.gram_stride, __ldg(densities.visual_log_z + token),
                selection.redundancy == Redundancy::kChain ? expf(__ldg(densities.log_prior + token)) : 0.0f, selection,
                step);
  }
  clear_slots(picks, slots, step, threadIdx.x, blockDim.x);
}

} // namespace mi_pruner::cuda

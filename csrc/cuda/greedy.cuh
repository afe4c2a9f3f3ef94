// Greedy selection of a sample by one block, from the cosines of all visual tokens with each other.
//
// Algorithm: a step takes the largest gain (the lowest index among equals), writes it, and adds the redundancy of the
// pick with every token, which follows from the pick's row of cosines and its normaliser.
//
// Mapping: block = sample, 4 tokens a thread, in registers for the whole selection: score, rho, log prior. A step: 4
// exponentials a thread, a `redux` and a ballot in each warp, one barrier, two `redux` over the warps' bests, one row
// read. The warps that hold the runners-up ask for their rows beside it: the next pick is mostly one of them, or of
// those of earlier steps.
//
// Bound by latency: the instructions of a step in series, a barrier, and a read of L1 (prefetched) or L2.
// Determinism: no sum crosses threads; the sum over the picks runs in their order.
#pragma once

#include "cuda/quad.cuh"

namespace mi_pruner::cuda {

constexpr int kGreedyThreads = 1024; // a quad each: 4096 tokens
constexpr int kCacheLine = 128;
// Runners-up whose rows are fetched: more bring few hits, and a row of every warp would be more than L1 and its
// bandwidth hold (docs/kernels-cuda.md).
constexpr int kRunnersUp = 4;

// A warp's best token: the rank of its gain, 0 where it has none.
struct WarpBest {
  unsigned rank, index;
};

struct GreedyShared {
  WarpBest best[2][kMostWarps]; // of the warps, for odd and even steps: one barrier a step is enough
  float log_z[kGreedyThreads * kQuad];
  float scale[kGreedyThreads * kQuad + 1]; // of rho, after so many picks
};

// The warp's best token, left by the lane that holds it; returns its rank.
__device__ inline unsigned give_best(const TokenQuad& tokens, float scale, const SharedPlace<WarpBest>& place,
                                     unsigned ahead) {
  unsigned rank[kQuad], most = 0;
#pragma unroll
  for (int e = 0; e < kQuad; ++e) {
    rank[e] = tokens.rank(e, scale);
    most = rank[e] > most ? rank[e] : most;
  }
  const unsigned own = __reduce_max_sync(kFullWarp, most), holders = __ballot_sync(kFullWarp, most == own),
                 lower = (1u << threadIdx.x % 32) - 1;
  if (most == own && (holders & lower) == 0) { // the lowest index is the lowest lane's
    const unsigned e = rank[0] == own ? 0 : rank[1] == own ? 1 : rank[2] == own ? 2 : 3;
    place.store(ahead, {own, static_cast<unsigned>(tokens.first) + e});
  }
  return own;
}

// Everything of the loop is 32 bits wide and in registers: it is a chain of some hundred instructions, whose length is
// the time of a step.
template <Redundancy kMode>
__global__ void __launch_bounds__(kGreedyThreads)
    greedy_kernel(const Layout visual, const float* const scores, const Similarities found, const Densities densities,
                  const Selection selection, const Picks picks) {
  MI_PRUNER_SHARED(GreedyShared, shared);
  const int64_t sample = blockIdx.x;
  const Span span = span_of(visual, sample), slots = span_of(picks.slots, sample);
  const int64_t most = limit_of(picks, sample, slots); // of 64 bits, as a budget is
  const int count = static_cast<int>(span.count),
            limit = most < 0       ? 0
                    : most < count ? static_cast<int>(most)
                                   : count,
            thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const Selection options{selection.kappa, kMode, selection.weight};
  for (int k = thread; k < 2 * kMostWarps; k += blockDim.x)
    shared.best[k / kMostWarps][k % kMostWarps] = {};
  for (int k = thread; k <= count; k += blockDim.x) { // no more picks than tokens
    if (k < count) shared.log_z[k] = densities.visual_log_z[span.begin + k];
    shared.scale[k] = scale_of(options, k);
  }
  TokenQuad tokens;
  tokens.start(scores, densities.log_prior, span, kQuad * thread);
  const unsigned stride = static_cast<unsigned>(found.gram_stride) * unsigned{sizeof(float)},
                 bytes = count * unsigned{sizeof(float)}, lowest = rank_of(picks.min_gain),
                 least = lowest > 1 ? lowest : 1;
  const float* const gram = found.gram + span.begin * found.gram_stride;
  const float* const own_gram = gram + tokens.first;
  const SharedPlace<WarpBest> own_place(&shared.best[0][warp]), seen_place(&shared.best[0][lane]);
  const bool inside = tokens.first < count;
  int64_t* index_to = picks.indices + slots.begin;
  float* gain_to = picks.gains + slots.begin;
  float scale = options.weight;
  unsigned fetched = ~0u;
  int step = 0;
  __syncthreads();
  while (step < limit) {
    const unsigned ahead = step % 2 * kMostWarps;
    const unsigned own = give_best(tokens, scale, own_place, ahead);
    __syncthreads();
    const WarpBest other = seen_place.load(ahead);
    const unsigned best = __reduce_max_sync(kFullWarp, other.rank),
                   pick = __reduce_min_sync(kFullWarp, other.rank == best ? other.index : ~0u);
    if (best < least) break;
    const float4 cosines =
        inside ? __ldg(reinterpret_cast<const float4*>(at_multiple(own_gram, pick, stride))) : float4{};
    const float log_z = shared.log_z[pick];
    if (thread == 0) *index_to++ = pick, *gain_to++ = gain_of_rank(best);
    if (++step == limit) break;
    scale = shared.scale[step];
    tokens.remove(static_cast<int>(pick));
    const int ahead_of_own = __popc(__ballot_sync(kFullWarp, other.rank > own));
    const unsigned next = __shfl_sync(kFullWarp, other.index, warp);
    if (own != 0 && ahead_of_own > 0 && ahead_of_own <= kRunnersUp && next != fetched) {
      const char* const row = at_multiple(gram, next, stride);
#pragma unroll 1
      for (unsigned at = lane * kCacheLine; at < bytes; at += 32 * kCacheLine)
        prefetch(row + at);
      fetched = next;
    }
    const float prior = kMode == Redundancy::kChain ? expf(__ldg(densities.log_prior + span.begin + pick)) : 0.0f;
    tokens.join(cosines, log_z, prior, options, step);
  }
  clear_slots(picks, slots, step, threadIdx.x, blockDim.x);
}

} // namespace mi_pruner::cuda

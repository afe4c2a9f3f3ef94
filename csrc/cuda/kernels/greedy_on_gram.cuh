// Greedy selection of a sample by one block, from log K of all its visual tokens with each other.
//
// Algorithm: a step takes the largest gain (the lowest index among equals), and adds the redundancy of the pick with
// every token, which follows from the pick's row and its normaliser.
//
// Mapping: block = sample, 4 tokens a thread, in registers for the whole selection: score, rho, log prior. A step: the
// best of a thread's gains, a `redux` and a ballot in each warp, one barrier, two `redux` over the warps' bests, one
// row read, 4 exponentials a thread. The warps that hold the runners-up fetch their rows beside it: the next pick is
// mostly one of them, or of those of earlier steps. Picks stay in shared memory until all are known.
//
// Bound by latency: the instructions of a step in series, a barrier, and a read of L1 (fetched ahead) or L2.
// Determinism: no sum crosses threads; the sum over the picks runs in their order.
#pragma once

#include "cuda/base/paths.h"
#include "cuda/greedy/token_quad.cuh"

namespace mi_pruner::cuda {

constexpr int kGreedyThreads = 1024; // a quad each
static_assert(kGreedyThreads * kQuad == kGramTokens);
constexpr int kMostWarps = kGreedyThreads / 32;
constexpr unsigned kCacheLine = 128;
// Runners-up whose rows are fetched: more bring few hits, and a row of every warp would be more than L1 and its
// bandwidth hold. Short rows are brought to L1, by copies that nobody reads; long ones, by a hint a line, as far as L2
// (docs/kernels-cuda.md).
constexpr int kRunnersUp = 4;
constexpr int64_t kShortRow = 1024; // tokens

// A token and the rank of its gain, 0 where there is none.
struct Ranked {
  unsigned rank, index;
};

// Shared memory of a block: no more than the longest sample needs, since what is left of it is L1, or another block's.
struct GreedyShared {
  Ranked best[2][kMostWarps]; // of the warps, for odd and even steps: one barrier a step is enough

  // Then, of `longest` tokens: the picks; log Z; and, for one more, the scale of rho after so many picks; and, where
  // rows are short, room for one a warp: copied there to pass through L1, never read.
  __device__ Ranked* picks() { return reinterpret_cast<Ranked*>(this + 1); }
  __device__ float* log_z(int64_t longest) { return reinterpret_cast<float*>(picks() + padded(longest)); }
  __device__ float* scale(int64_t longest) { return log_z(longest) + padded(longest); }
  __device__ float4* copied(int64_t longest) { return reinterpret_cast<float4*>(scale(longest) + padded(longest)); }

  // Rounds in which the lanes of a warp copy a row, 16 bytes each; 0: it is not short.
  static __host__ __device__ constexpr unsigned rounds(int64_t longest) {
    constexpr unsigned kRound = 32 * sizeof(float4) / sizeof(float);
    return longest <= kShortRow ? (static_cast<unsigned>(longest) + kRound - 1) / kRound : 0;
  }

  static constexpr size_t bytes(int64_t longest) {
    const int64_t warps = (longest + 32 * kQuad - 1) / (32 * kQuad);
    return sizeof(GreedyShared) + padded(longest) * (sizeof(Ranked) + 2 * sizeof(float)) +
           warps * rounds(longest) * 32 * sizeof(float4);
  }

private:
  static __host__ __device__ constexpr int64_t padded(int64_t longest) { return longest / 4 * 4 + 4; }
};
static_assert(GreedyShared::bytes(kGramTokens) <= kMostShared);
static_assert(GreedyShared::bytes(kShortRow) <= GreedyShared::bytes(kGramTokens));

// The warp's best token, left by the lane that holds it; returns its rank.
__device__ inline unsigned give_best(const TokenQuad& tokens, float scale, unsigned lanes,
                                     const SharedPlace<Ranked>& place, unsigned offset) {
  float gain[kQuad]; // NaN: not to be picked
#pragma unroll
  for (int e = 0; e < kQuad; ++e)
    gain[e] = gain_from(tokens.score[e], tokens.rho[e], scale);
  const float most = fmaxf(fmaxf(gain[0], gain[1]), fmaxf(gain[2], gain[3]));
  const unsigned rank = isnan(most) ? 0 : rank_of(most), own = __reduce_max_sync(kFullWarp, rank),
                 holders = __ballot_sync(kFullWarp, rank == own) & lanes;
  const unsigned e = gain[0] == most ? 0 : gain[1] == most ? 1 : gain[2] == most ? 2 : 3;
  const bool first = (holders ^ lanes) == lanes >> 1; // of those that hold it, and so the lowest index
  place.store_if(first, offset, {own, static_cast<unsigned>(tokens.first) + e});
  return own;
}

// Everything of the loop is 32 bits wide and in registers, and little of it branches: it is a chain of some hundred
// instructions, whose length bounds a step from below.
template <Redundancy kMode>
__global__ void __launch_bounds__(kGreedyThreads)
    greedy_kernel(const Layout visual, const float* const scores, const Similarities found, const Densities densities,
                  const Selection selection, const Picks picks) {
  MI_PRUNER_SHARED(GreedyShared, shared);
  const int64_t sample = blockIdx.x;
  const Span span = span_of(visual, sample), slots = span_of(picks.slots, sample);
  const unsigned count = static_cast<unsigned>(span.count),
                 limit = static_cast<unsigned>(limit_of(picks, sample, span, slots));
  const Selection options{selection.kappa, kMode, selection.weight};
  float *const log_z_of = shared.log_z(visual.longest), *const scale_after = shared.scale(visual.longest);
  for (unsigned k = threadIdx.x; k < 2 * kMostWarps; k += blockDim.x)
    shared.best[k / kMostWarps][k % kMostWarps] = {};
  for (unsigned k = threadIdx.x; k <= count; k += blockDim.x) { // no more picks than tokens
    if (k < count) log_z_of[k] = densities.visual_log_z[span.begin + k];
    scale_after[k] = scale_of(options, static_cast<int>(k));
  }
  TokenQuad tokens;
  tokens.start(scores, densities.log_prior, span, kQuad * static_cast<int>(threadIdx.x));
  const unsigned stride = static_cast<unsigned>(found.gram_stride) * unsigned{sizeof(float)},
                 bytes = count * unsigned{sizeof(float)}, lowest = rank_of(picks.min_gain);
  unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, lanes = (2u << lane) - 1, least = lowest > 1 ? lowest : 1;
  const unsigned rounds = GreedyShared::rounds(visual.longest);
  SharedAddress copied = shared_address(shared.copied(visual.longest) + warp * rounds * 32 + lane);
  keep(tokens.first);
  keep(warp);
  keep(lane);
  keep(copied);
  keep(lanes);
  keep(least);
  const float* const gram = found.gram + span.begin * found.gram_stride;
  const float* const own_gram = gram + tokens.first;
  const SharedPlace<Ranked> own_place(&shared.best[0][warp]), seen_place(&shared.best[0][lane]),
      picks_place(shared.picks());
  const bool inside = tokens.first < static_cast<int>(count), writes = tokens.first == 0;
  float scale = options.weight;
  unsigned fetched = ~0u, step = 0;
  __syncthreads();
  while (limit > 0) {
    const unsigned offset = step % 2 * kMostWarps;
    const unsigned own = give_best(tokens, scale, lanes, own_place, offset);
    __syncthreads();
    const Ranked other = seen_place.load(offset);
    const unsigned best = __reduce_max_sync(kFullWarp, other.rank),
                   pick = __reduce_min_sync(kFullWarp, other.rank == best ? other.index : ~0u);
    const bool picked = best >= least;
    float4 row{};
    if (inside && picked) row = __ldg(reinterpret_cast<const float4*>(at_multiple(own_gram, pick, stride)));
    picks_place.store_if(writes && picked, step, {best, pick});
    if (picked) ++step;
    if (!picked || step == limit) break;
    const float log_z = log_z_of[pick];
    scale = scale_after[step];
    tokens.remove(static_cast<int>(pick));
    const unsigned ahead_of_own = __popc(__ballot_sync(kFullWarp, other.rank > own)),
                   next = __shfl_sync(kFullWarp, other.index, static_cast<int>(warp));
    if (own != 0 && ahead_of_own - 1 < kRunnersUp && next != fetched) {
      const char* const from = at_multiple(gram, next, stride);
      if (rounds > 0) {
        wait_for_copies<0>(); // of an earlier row, long there
        SharedAddress to = copied;
#pragma unroll 1
        for (unsigned at = lane * unsigned{sizeof(float4)}; at < bytes; at += 32 * unsigned{sizeof(float4)}) {
          copy_through_cache(to, from + at);
          to += 32 * unsigned{sizeof(float4)};
        }
        commit_copies();
      } else {
#pragma unroll 1
        for (unsigned at = lane * kCacheLine; at < bytes; at += 32 * kCacheLine)
          prefetch(from + at);
      }
      fetched = next;
    }
    const float prior = kMode == Redundancy::kChain ? expf(__ldg(densities.log_prior + span.begin + pick)) : 0.0f;
    tokens.join(row, log_z, prior, kMode, static_cast<int>(step));
  }
  wait_for_copies<0>();
  __syncthreads();
  for (unsigned k = threadIdx.x; k < step; k += blockDim.x) {
    picks.indices[slots.begin + k] = shared.picks()[k].index;
    picks.gains[slots.begin + k] = gain_of_rank(shared.picks()[k].rank);
  }
  clear_slots(picks, slots, step, threadIdx.x, blockDim.x);
}

} // namespace mi_pruner::cuda

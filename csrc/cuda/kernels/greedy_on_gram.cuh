// Greedy selection of a sample by one block, from log K of all its visual tokens with each other.
//
// Algorithm: a step takes the largest gain (the lowest index among equals), and adds the redundancy of the pick with
// every token, which follows from the pick's row and its normaliser.
//
// Mapping: block = sample; tokens in registers for the whole selection (score, rho, log prior), 4 a thread, of long
// samples twice 4. A step: the best of a thread's gains, a `redux` and a ballot in each warp, one barrier, two `redux`
// over the warps' bests, one row read, an exponential a token. Further warps, which hold no tokens, fetch the rows of
// the runners-up beside it: the next pick is mostly one of them, or of those of earlier steps. Picks stay in shared
// memory until all are known.
//
// Bound by latency: the instructions of a step in series, a barrier, and a read of L1 (fetched ahead) or L2.
// Determinism: no sum crosses threads; the sum over the picks runs in their order.
#pragma once

#include "cuda/base/paths.h"
#include "cuda/greedy/token_quad.cuh"

namespace mi_pruner::cuda {

constexpr unsigned kCacheLine = 128, kLanes = 32;
// Runners-up whose rows are fetched: more bring few hits, and a row of every warp would be more than L1 and its
// bandwidth hold. Short rows are brought to L1, by copies that nobody reads; long ones, by a hint a line, as far as L2
// (docs/kernels-cuda.md).
constexpr int kRunnersUp = 4;
constexpr int64_t kShortRow = 1024; // tokens
constexpr unsigned kFetchers = 128; // threads that do it: four warps, mostly a row each

// Quads of tokens that a thread holds. Two in long samples: half the warps take turns at the same units.
constexpr int64_t kOneQuad = 1024; // tokens
constexpr int quads_of(int64_t longest) { return longest <= kOneQuad ? 1 : 2; }

// Which tokens are a thread's: a warp has neighbouring ones, and reads 512 neighbouring bytes of a row at a time.
template <int kQuads> struct Held {
  static constexpr int kChunk = 32 * kQuad, kOfWarp = kChunk * kQuads;
  static constexpr int kMostWarps = static_cast<int>(kQuads == 1 ? kOneQuad : kGramTokens) / kOfWarp;
  static constexpr int kMostThreads = 32 * kMostWarps + kFetchers;
  static_assert(kMostWarps <= kLanes && kMostWarps % (kFetchers / 32) == 0);

  static __device__ int first(unsigned thread, int q) {
    return static_cast<int>(thread / 32 * kOfWarp + thread % 32 * kQuad) + kChunk * q;
  }
};

// A token and the rank of its gain, 0 where there is none.
struct Ranked {
  unsigned rank, index;
};

// Shared memory of a block: no more than the longest sample needs, since what is left of it is L1, or another block's.
struct GreedyShared {
  Ranked best[2][kLanes];   // of the warps, for odd and even steps: one barrier a step is enough
  float4 copied[kFetchers]; // all that a thread copies to pass through L1: never read

  // Then, of `longest` tokens: the picks; log Z; and, for one more, the scale of rho after so many picks.
  __device__ Ranked* picks() { return reinterpret_cast<Ranked*>(this + 1); }
  __device__ float* log_z(int64_t longest) { return reinterpret_cast<float*>(picks() + padded(longest)); }
  __device__ float* scale(int64_t longest) { return log_z(longest) + padded(longest); }

  static constexpr size_t bytes(int64_t longest) {
    return sizeof(GreedyShared) + padded(longest) * (sizeof(Ranked) + 2 * sizeof(float));
  }

private:
  static __host__ __device__ constexpr int64_t padded(int64_t longest) { return longest / 4 * 4 + 4; }
};
static_assert(GreedyShared::bytes(kGramTokens) <= kMostShared);

// The warp's best token, left by the lane that holds it: any one, of rank 0, where there is none. `below`:
// the bits of the lanes below this one.
template <int kQuads>
__device__ inline void give_best(const TokenQuad (&tokens)[kQuads], float scale, unsigned below,
                                 const SharedPlace<Ranked>& place, unsigned offset) {
  float most[kQuads]; // NaN: not to be picked
  unsigned index[kQuads];
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    float gain[kQuad];
#pragma unroll
    for (int e = 0; e < kQuad; ++e)
      gain[e] = gain_from(tokens[q].score[e], tokens[q].rho[e], scale);
    most[q] = fmaxf(fmaxf(gain[0], gain[1]), fmaxf(gain[2], gain[3]));
    index[q] = 0;
#pragma unroll
    for (int e = kQuad - 1; e >= 0; --e)
      if (gain[e] == most[q]) index[q] = static_cast<unsigned>(tokens[q].first + e);
  }
  const float best = fmaxf(most[0], most[kQuads - 1]);
  const bool in_first = kQuads == 1 || most[0] == best;
  unsigned rank = rank_of(best);
  keep(rank); // beside the test for NaN, not after it
  rank = isnan(best) ? 0 : rank;
  const unsigned own = __reduce_max_sync(kFullWarp, rank);
  const bool holds = rank == own;
  // The lowest index is stored. Before it come the first quads of lower lanes; before one of a second quad, those of
  // all lanes, and the second ones of lower lanes.
  const unsigned before_in_first = in_first ? below : kFullWarp, before_in_any = in_first ? 0 : below;
  const unsigned in_first_of = __ballot_sync(kFullWarp, holds && in_first),
                 in_any_of = kQuads == 1 ? 0 : __ballot_sync(kFullWarp, holds);
  const unsigned before =
      (in_first_of & (holds ? before_in_first : kFullWarp)) | (in_any_of & (holds ? before_in_any : kFullWarp));
  place.store_if(before == 0, offset, {own, in_first ? index[0] : index[kQuads - 1]});
}

// The best of the warps' bests, the lowest index among equals: `seen` of the warp whose number is this lane's.
__device__ inline Ranked best_of(const Ranked& seen) {
  const unsigned rank = __reduce_max_sync(kFullWarp, seen.rank);
  return {rank, __reduce_min_sync(kFullWarp, seen.rank == rank ? seen.index : ~0u)};
}

// What all threads know of a selection. Those with tokens and the others have loops of their own, which meet once a
// step, and end at the same one.
struct Steps {
  const float* gram; // of the sample
  unsigned count, stride, limit, least;

  __device__ static unsigned place(unsigned step) { return step % 2 * kLanes; }
};

// The loop of the threads with tokens; returns the number of picks. Everything in it is 32 bits wide and in registers,
// and nothing of it branches: it is a chain of some hundred instructions, whose length bounds a step from below.
template <Redundancy kMode, int kQuads>
__device__ unsigned take_steps(GreedyShared& shared, const Steps& steps, TokenQuad (&tokens)[kQuads], float scale,
                               int64_t longest, const float* log_prior) {
  const float *const log_z_of = shared.log_z(longest), *const scale_after = shared.scale(longest);
  unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, below = (1u << lane) - 1, least = steps.least, step = 0;
  keep(below);
  keep(least);
  const float* const own_gram = steps.gram + tokens[0].first;
  bool inside[kQuads];
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    keep(tokens[q].first);
    inside[q] = tokens[q].first < static_cast<int>(steps.count);
  }
  const SharedPlace<Ranked> own_place(&shared.best[0][warp]), seen_place(&shared.best[0][lane]);
  if (steps.limit == 0) return 0;
  float4 row[kQuads]{};
  bool last;
  do { // what follows the last pick is done in vain, but without a branch on the way
    give_best(tokens, scale, below, own_place, Steps::place(step));
    scale = scale_after[step + 1]; // before the barrier: on the way, it would be waited for
    meet();
    const Ranked pick = best_of(seen_place.load(Steps::place(step)));
#pragma unroll
    for (int q = 0; q < kQuads; ++q)
      if (inside[q])
        row[q] = __ldg(reinterpret_cast<const float4*>(at_multiple(own_gram, pick.index, steps.stride)) + 32 * q);
    const float log_z = log_z_of[pick.index];
    const bool picked = pick.rank >= least;
    if (picked) ++step;
    last = !picked || step == steps.limit;
    const float prior = kMode == Redundancy::kChain ? expf(__ldg(log_prior + pick.index)) : 0.0f;
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      tokens[q].remove(static_cast<int>(pick.index));
      tokens[q].join(row[q], log_z, prior, kMode, static_cast<int>(step));
    }
  } while (!last);
  return step;
}

// The loop of the threads without: they keep the picks, and fetch the rows of the runners-up. Each warp looks at the
// bests of a few warps, and at most fetches what it has not fetched last for the same one.
template <int kMostWarps>
__device__ unsigned fetch_rows(GreedyShared& shared, const Steps& steps, unsigned member, int64_t longest) {
  constexpr unsigned kApart = kFetchers / 32;
  constexpr int kLookedAt = kMostWarps / kApart;
  const unsigned bytes = steps.count * unsigned{sizeof(float)}, lane = member % 32,
                 size = longest <= kShortRow ? sizeof(float4) : kCacheLine;
  const SharedPlace<Ranked> seen_place(&shared.best[0][lane]), looked_at(&shared.best[0][member / 32]),
      picks_place(shared.picks());
  const SharedAddress copied = shared_address(shared.copied + member);
  unsigned fetched[kLookedAt], step = 0;
#pragma unroll
  for (int k = 0; k < kLookedAt; ++k)
    fetched[k] = ~0u;
  while (steps.limit > 0) {
    meet();
    const Ranked seen = seen_place.load(Steps::place(step));
    Ranked one[kLookedAt];
    bool wanted[kLookedAt];
#pragma unroll
    for (int k = 0; k < kLookedAt; ++k)
      one[k] = looked_at.load(Steps::place(step) + kApart * k);
#pragma unroll
    for (int k = 0; k < kLookedAt; ++k) {
      const unsigned ahead = __popc(__ballot_sync(kFullWarp, seen.rank > one[k].rank));
      wanted[k] = one[k].rank != 0 && ahead - 1 < kRunnersUp && one[k].index != fetched[k];
    }
    const Ranked pick = best_of(seen);
#pragma unroll
    for (int k = 0; k < kLookedAt; ++k) {
      if (!wanted[k]) continue;
      fetched[k] = one[k].index;
      const char* const from = at_multiple(steps.gram, one[k].index, steps.stride);
#pragma unroll 1
      for (unsigned at = lane * size; at < bytes; at += 32 * size)
        if (size == sizeof(float4))
          copy_through_cache(copied, from + at);
        else
          prefetch(from + at);
    }
    if (pick.rank < steps.least) break;
    picks_place.store_if(member == 0, step, pick);
    if (++step == steps.limit) break;
  }
  commit_copies();
  wait_for_copies<0>(); // their place may be another block's next
  return step;
}

template <Redundancy kMode, int kQuads>
__global__ void __launch_bounds__(Held<kQuads>::kMostThreads, 1)
    greedy_kernel(const Layout visual, const float* const scores, const Similarities found, const Densities densities,
                  const Selection selection, const Picks picks) {
  MI_PRUNER_SHARED(GreedyShared, shared);
  const int64_t sample = blockIdx.x;
  const Span span = span_of(visual, sample), slots = span_of(picks.slots, sample);
  const Selection options{selection.kappa, kMode, selection.weight};
  for (unsigned k = threadIdx.x; k < 2 * kLanes; k += blockDim.x)
    shared.best[k / kLanes][k % kLanes] = {};
  for (unsigned k = threadIdx.x; k <= span.count; k += blockDim.x) { // no more picks than tokens
    if (k < span.count) shared.log_z(visual.longest)[k] = densities.visual_log_z[span.begin + k];
    shared.scale(visual.longest)[k] = scale_of(options, static_cast<int>(k));
  }
  __syncthreads();
  const unsigned holders = blockDim.x - kFetchers, lowest = rank_of(picks.min_gain);
  const Steps steps{found.gram + span.begin * found.gram_stride, static_cast<unsigned>(span.count),
                    static_cast<unsigned>(found.gram_stride) * unsigned{sizeof(float)},
                    static_cast<unsigned>(limit_of(picks, sample, span, slots)), lowest > 1 ? lowest : 1};
  unsigned taken;
  if (threadIdx.x < holders) {
    TokenQuad tokens[kQuads];
#pragma unroll
    for (int q = 0; q < kQuads; ++q)
      tokens[q].start(scores, densities.log_prior, span, Held<kQuads>::first(threadIdx.x, q));
    taken = take_steps<kMode>(shared, steps, tokens, options.weight, visual.longest, densities.log_prior + span.begin);
  } else {
    taken = fetch_rows<Held<kQuads>::kMostWarps>(shared, steps, threadIdx.x - holders, visual.longest);
  }
  __syncthreads();
  for (unsigned k = threadIdx.x; k < taken; k += blockDim.x) {
    picks.indices[slots.begin + k] = shared.picks()[k].index;
    picks.gains[slots.begin + k] = gain_of_rank(shared.picks()[k].rank);
  }
  clear_slots(picks, slots, taken, threadIdx.x, blockDim.x);
}

} // namespace mi_pruner::cuda

// Greedy selection of a sample by one block, from log K of all its visual tokens with each other.
//
// Algorithm: a step takes the largest gain (the lowest index among equals), and adds the redundancy of the pick with
// every token, which follows from the pick's row and its normaliser.
//
// Mapping: block = sample; tokens in registers for the whole selection (score, rho, log prior), 4 a thread. A step: the
// best of a thread's gains, a `redux` and a ballot in each warp, one barrier, two `redux` over the warps' bests, one
// row read, an exponential a token. Beside it the rows of the runners-up are fetched: the next pick is mostly one of
// them, or of those of earlier steps. Picks stay in shared memory until all are known. Of short samples
// one warp selects instead (greedy_by_warp.cuh).
//
// Bound by latency: the instructions of a step in series, a barrier, and a read of L2.
// Determinism: no sum crosses threads; the sum over the picks runs in their order.
#pragma once

#include "cuda/base/paths.h"
#include "cuda/greedy/token_quad.cuh"

namespace mi_pruner::cuda {

constexpr unsigned kCacheLine = 128;
// Runners-up whose rows are fetched: more bring few hits, and a row of every warp would be more than L1 and its
// bandwidth hold (docs/kernels-cuda.md).
constexpr int kRunnersUp = 4;

constexpr unsigned kMostThreads = kGramTokens / kQuad, kMostWarps = kMostThreads / 32;
static_assert(kMostThreads <= 1024 && kMostWarps <= 32); // a lane for each warp

// Shared memory of a block: no more than the longest sample needs, since what is left of it is L1, or another block's.
struct GreedyShared {
  Ranked best[2][kMostWarps]; // of the warps, for odd and even steps: one barrier a step is enough

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

// The best of the warps' bests, the lowest index among equals: `seen` of the warp whose number is this lane's.
__device__ inline Ranked best_of(const Ranked& seen) {
  const unsigned rank = __reduce_max_sync(kFullWarp, seen.rank);
  return {rank, __reduce_min_sync(kFullWarp, seen.rank == rank ? seen.index : ~0u)};
}

// What all threads know of a selection.
struct Steps {
  const float* gram; // of the sample
  unsigned count, stride, limit, least;

  __device__ static unsigned place(unsigned step) { return step % 2 * kMostWarps; }
  __device__ unsigned bytes() const { return count * unsigned{sizeof(float)}; } // of a row
  // Whether so many tokens ahead of one, the pick among them, make it a runner-up.
  __device__ static bool fetched_after(unsigned ahead) { return ahead - 1 < kRunnersUp; }
};

// Returns the number of picks. Everything in the loop is 32 bits wide and in registers. Its many warps are bound by
// what they issue; each gives the hint of its own best token's row.
template <Redundancy kMode>
__device__ unsigned take_steps(GreedyShared& shared, const Steps& steps, TokenQuad& tokens, float scale,
                               int64_t longest, const float* log_prior) {
  const float *const log_z_of = shared.log_z(longest), *const scale_after = shared.scale(longest);
  unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, lanes = (2u << lane) - 1, least = steps.least;
  keep(tokens.first);
  keep(warp);
  keep(lane);
  keep(lanes);
  keep(least);
  const float* const own_gram = steps.gram + tokens.first;
  const SharedPlace<Ranked> own_place(&shared.best[0][warp]), seen_place(&shared.best[0][lane]),
      picks_place(shared.picks());
  const bool inside = tokens.first < static_cast<int>(steps.count), writes = tokens.first == 0;
  unsigned fetched = ~0u, step = 0;
  while (steps.limit > 0) {
    float gain[kQuad];
    const float most = most_of(tokens, scale, gain);
    const unsigned rank = isnan(most) ? 0 : rank_of(most), own = __reduce_max_sync(kFullWarp, rank),
                   holders = __ballot_sync(kFullWarp, rank == own) & lanes;
    const unsigned e = gain[0] == most ? 0 : gain[1] == most ? 1 : gain[2] == most ? 2 : 3;
    const bool first = (holders ^ lanes) == lanes >> 1; // of those that hold it, and so the lowest index
    own_place.store_if(first, Steps::place(step), {own, static_cast<unsigned>(tokens.first) + e});
    __syncthreads();
    const Ranked seen = seen_place.load(Steps::place(step)), pick = best_of(seen);
    const bool picked = pick.rank >= least;
    float4 row{};
    if (inside && picked) row = __ldg(reinterpret_cast<const float4*>(at_multiple(own_gram, pick.index, steps.stride)));
    picks_place.store_if(writes && picked, step, pick);
    if (picked) ++step;
    if (!picked || step == steps.limit) break;
    const float log_z = log_z_of[pick.index];
    scale = scale_after[step];
    tokens.remove(static_cast<int>(pick.index));
    const unsigned ahead = __popc(__ballot_sync(kFullWarp, seen.rank > own)),
                   next = __shfl_sync(kFullWarp, seen.index, static_cast<int>(warp));
    if (own != 0 && Steps::fetched_after(ahead) && next != fetched) {
      const char* const from = at_multiple(steps.gram, next, steps.stride);
#pragma unroll 1
      for (unsigned at = lane * kCacheLine; at < steps.bytes(); at += 32 * kCacheLine)
        prefetch(from + at);
      fetched = next;
    }
    const float weight = kMode == Redundancy::kChain ? expf(__ldg(log_prior + pick.index)) : 1.0f;
    tokens.join(row, log_z, weight, kMode, static_cast<int>(step));
  }
  return step;
}

template <Redundancy kMode>
__global__ void __launch_bounds__(kMostThreads, 1)
    greedy_kernel(const Layout visual, const float* const scores, const Similarities found, const Densities densities,
                  const Selection selection, const Picks picks) {
  MI_PRUNER_SHARED(GreedyShared, shared);
  const int64_t sample = blockIdx.x;
  const Span span = span_of(visual, sample), slots = span_of(picks.slots, sample);
  const Selection options{selection.kappa, kMode, selection.weight};
  for (unsigned k = threadIdx.x; k < 2 * kMostWarps; k += blockDim.x)
    shared.best[k / kMostWarps][k % kMostWarps] = {};
  for (unsigned k = threadIdx.x; k <= span.count; k += blockDim.x) { // no more picks than tokens
    if (k < span.count) shared.log_z(visual.longest)[k] = densities.visual_log_z[span.begin + k];
    shared.scale(visual.longest)[k] = scale_of(options, static_cast<int>(k));
  }
  __syncthreads();
  const unsigned lowest = rank_of(picks.min_gain);
  const Steps steps{found.gram + span.begin * found.gram_stride, static_cast<unsigned>(span.count),
                    static_cast<unsigned>(found.gram_stride) * unsigned{sizeof(float)},
                    static_cast<unsigned>(limit_of(picks, sample, span, slots)), lowest > 1 ? lowest : 1};
  TokenQuad tokens;
  tokens.start(scores, densities.log_prior, span, kQuad * static_cast<int>(threadIdx.x));
  const unsigned taken =
      take_steps<kMode>(shared, steps, tokens, options.weight, visual.longest, densities.log_prior + span.begin);
  __syncthreads();
  for (unsigned k = threadIdx.x; k < taken; k += blockDim.x) {
    picks.indices[slots.begin + k] = shared.picks()[k].index;
    picks.gains[slots.begin + k] = gain_of_rank(shared.picks()[k].rank);
  }
  clear_slots(picks, slots, taken, threadIdx.x, blockDim.x);
}

} // namespace mi_pruner::cuda

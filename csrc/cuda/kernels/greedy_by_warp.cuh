// Greedy selection of a short sample by one warp, from the redundancy R of all its visual tokens with each other.
//
// Algorithm: a step takes the largest gain (the lowest index among equals), and adds the pick's row of R. R of a token
// with itself is NaN, which makes a gain that is never taken again.
//
// Mapping: block = sample; its tokens in the registers of one warp (score, rho), 4 kQuads a lane: no step has a
// barrier, nor anything else that warps would have to agree on. Two `redux` and, mostly, a row from shared memory,
// which other warps brought there: each looks at the best token of a share of the lanes, and copies its row if it has
// none.
//
// Bound by latency: the instructions of a step in series, two reductions over a warp, and a read of shared memory (of
// L2, where the row is not there).
// Determinism: whoever brings a row, it is the same; no sum crosses threads; the sum over the picks runs in their
// order.
#pragma once

#include "cuda/base/paths.h"
#include "cuda/greedy/token_quad.cuh"

namespace mi_pruner::cuda {

// Warps of a block, of which the first selects. It has a scheduler to itself, but for a warp that ends at once.
constexpr int kSchedulers = 4, kGreedyWarps = 2 * kSchedulers, kFetchers = kGreedyWarps - 2;
constexpr unsigned kOver = ~0u; // as a step

// A row's place where it is in memory alone.
constexpr SharedAddress kNotHere = 0;

// Shared memory of a block, for samples of up to 128 kQuads tokens. Then so many rows.
template <int kQuads> struct alignas(16) WarpShared {
  static constexpr unsigned kTokens = 32 * kQuad * kQuads, kRowBytes = kTokens * sizeof(float);

  float score[kTokens];            // NaN: not to be picked
  SharedAddress place_of[kTokens]; // of a token's row
  Ranked picks[kTokens];
  float weight_of[kTokens];   // what rho gets of a pick's row
  float scale_after[kTokens]; // one pick, two, ...
  uint64_t best[32];          // of the lanes: the rank of a gain, and the token. Maybe of several steps.
  unsigned step;              // that the warp that selects has come to; kOver
  unsigned taken;             // picks in all

  __device__ SharedAddress row(unsigned number) { return shared_address(this + 1) + number * kRowBytes; }
  // Blocks that share a multiprocessor where there are so many: as registers allow.
  static constexpr int kSharing = kQuads == 2 ? 4 : kQuads == 5 ? 2 : 1;
  // Rows that each fetching warp keeps in so many bytes of the block: two at least, one of which is always free, and
  // not more than is of use, nor than it has lanes to tell whose they are.
  static constexpr unsigned kept(int64_t bytes) {
    const int64_t room = (bytes - static_cast<int64_t>(sizeof(WarpShared))) / int64_t{kFetchers * kRowBytes};
    return static_cast<unsigned>(room < 2 ? 2 : room < 16 ? room : 16);
  }
  static constexpr size_t bytes(unsigned kept) { return sizeof(WarpShared) + kFetchers * kept * kRowBytes; }
};

// What all warps know of a selection.
struct WarpSteps {
  const float* redundancies; // of the sample
  unsigned count, stride, limit, least;
  unsigned kept; // rows of each fetching warp

  __device__ const float* row(unsigned token) const {
    return reinterpret_cast<const float*>(at_multiple(redundancies, token, stride));
  }
};

// By the first warp, whose lanes have four neighbouring tokens for each of kQuads, 128 apart; returns the number of
// picks. Nothing branches but where a row is not here.
template <Redundancy kMode, int kQuads>
__device__ unsigned take_steps(WarpShared<kQuads>& shared, const WarpSteps& steps, float scale) {
  unsigned lane = threadIdx.x, step = 0, least = steps.least;
  keep(lane);
  keep(least);
  SharedAddress own_best = shared_address(shared.best + lane), places = shared_address(shared.place_of),
                step_place = shared_address(&shared.step);
  keep(own_best);
  keep(places);
  keep(step_place);
  const SharedPlace<Ranked> picks_place(shared.picks);
  float score[kQuads][kQuad], rho[kQuads][kQuad] = {}; // NaN: not to be picked; picked
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const float4 four = reinterpret_cast<const float4*>(shared.score)[32 * q + lane];
    score[q][0] = four.x;
    score[q][1] = four.y;
    score[q][2] = four.z;
    score[q][3] = four.w;
  }
  if (steps.limit == 0) return 0;
  bool last;
  do { // what follows the last pick is done in vain, but without a branch on the way
    float most[kQuads], all = 0;
    unsigned index[kQuads];
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      float gain[kQuad];
#pragma unroll
      for (int e = 0; e < kQuad; ++e)
        gain[e] = gain_from(score[q][e], rho[q][e], scale);
      most[q] = fmaxf(fmaxf(gain[0], gain[1]), fmaxf(gain[2], gain[3]));
      all = q == 0 ? most[0] : fmaxf(all, most[q]);
      index[q] = 32 * kQuad * q + kQuad - 1;
#pragma unroll
      for (int e = kQuad - 2; e >= 0; --e)
        if (gain[e] == most[q]) index[q] = 32 * kQuad * q + e;
    }
    unsigned rank = rank_of(all);
    keep(rank); // beside the test for NaN, not after it
    rank = isnan(all) ? 0 : rank;
    const unsigned best = __reduce_max_sync(kFullWarp, rank);
    const float next_scale = shared.scale_after[step]; // on the way, it would be waited for
    unsigned own = rank == 0 ? 0 : index[kQuads - 1];
#pragma unroll
    for (int q = kQuads - 2; q >= 0; --q)
      own = most[q] == all ? index[q] : own;
    own += kQuad * lane;
    store_hint(own_best, uint64_t{rank} << 32 | own);
    const unsigned pick = __reduce_min_sync(kFullWarp, rank == best ? own : ~0u);
    const SharedAddress place = told<SharedAddress>(places + pick * unsigned{sizeof(SharedAddress)});
    float4 row[kQuads]; // beyond the sample, anything: its tokens are not to be picked
    if (place != kNotHere) [[likely]] {
#pragma unroll
      for (int q = 0; q < kQuads; ++q)
        row[q] = load_four(place + (lane + 32 * q) * unsigned{sizeof(float4)});
    } else {
      const float4* const from = reinterpret_cast<const float4*>(steps.row(pick));
#pragma unroll
      for (int q = 0; q < kQuads; ++q)
        row[q] = kQuad * (lane + 32 * q) < steps.count ? __ldg(from + lane + 32 * q) : float4{};
    }
    const float weight = kMode == Redundancy::kChain ? shared.weight_of[pick] : 1.0f;
    const bool picked = best >= least;
    picks_place.store_if(picked && lane == 0, step, {best, pick});
    if (picked) ++step;
    last = !picked || step == steps.limit;
    scale = next_scale;
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const float redundancy[kQuad] = {row[q].x, row[q].y, row[q].z, row[q].w};
#pragma unroll
      for (int e = 0; e < kQuad; ++e)
        rho[q][e] = joined(rho[q][e], redundancy[e], kMode, static_cast<int>(step), weight);
    }
    __syncwarp(); // all lanes have read their part of the row
    if (lane == 0) pass(step_place, step);
  } while (!last);
  return step;
}

// By the other warps, `member`: rows of the best tokens, of those lanes whose number is the warp's modulo kFetchers.
template <int kQuads> __device__ void fetch_rows(WarpShared<kQuads>& shared, const WarpSteps& steps, unsigned member) {
  const unsigned lane = threadIdx.x % 32;
  const SharedAddress places = shared_address(shared.place_of), step_place = shared_address(&shared.step);
  const auto place_of = [&](unsigned token) { return places + token * unsigned{sizeof(SharedAddress)}; };
  unsigned turn = 0;             // which of its rows comes next; what was there is forgotten
  unsigned held = kOver;         // of the row whose number is this lane's: whose it is
  unsigned forgotten_in = kOver; // the step when it was
  // As one lane sees it, so that all do the same.
  const auto step_now = [&] { return __shfl_sync(kFullWarp, told<unsigned>(step_place), 0); };
  for (unsigned step; (step = step_now()) != kOver;) {
    const uint64_t seen = load_hint(shared_address(shared.best + lane));
    const unsigned rank = static_cast<unsigned>(seen >> 32), index = static_cast<unsigned>(seen);
    const unsigned picked = __reduce_max_sync(kFullWarp, rank); // in this step: its row would come too late
    const bool wanted =
        lane % kFetchers == member && rank != 0 && rank != picked && told<SharedAddress>(place_of(index)) == kNotHere;
    const unsigned best = __reduce_max_sync(kFullWarp, wanted ? rank : 0),
                   lanes = __ballot_sync(kFullWarp, wanted && rank == best);
    if (lanes == 0 || step == forgotten_in) { // the warp that selects may still read what would be overwritten
      wait_a_moment();
      continue;
    }
    const unsigned token = __shfl_sync(kFullWarp, index, __ffs(static_cast<int>(lanes)) - 1);
    const float* const from = steps.row(token);
    const SharedAddress to = shared.row(member * steps.kept + turn);
    for (unsigned at = kQuad * lane; at < steps.count; at += 32 * kQuad)
      copy_async(to + at * unsigned{sizeof(float)}, from + at);
    commit_copies();
    wait_for_copies<0>();
    __syncwarp();
    if (lane == 0) tell(place_of(token), to);
    if (lane == turn) held = token;
    turn = turn + 1 == steps.kept ? 0 : turn + 1;
    const unsigned forgotten = __shfl_sync(kFullWarp, held, static_cast<int>(turn));
    forgotten_in = kOver;
    if (forgotten == kOver) continue;
    if (lane == 0) tell(place_of(forgotten), kNotHere);
    __syncwarp();
    forgotten_in = step_now();
  }
}

template <Redundancy kMode, int kQuads>
__global__ void __launch_bounds__(32 * kGreedyWarps, 1)
    greedy_warp_kernel(const Layout visual, const float* const scores, const Similarities found,
                       const Densities densities, const Selection selection, const Picks picks, const unsigned kept) {
  MI_PRUNER_SHARED(WarpShared<kQuads>, shared);
  const int64_t sample = blockIdx.x;
  const Span span = span_of(visual, sample), slots = span_of(picks.slots, sample);
  const Selection options{selection.kappa, kMode, selection.weight};
  const unsigned warp = __shfl_sync(kFullWarp, threadIdx.x / 32, 0), lowest = rank_of(picks.min_gain);
  if (threadIdx.x < 32) shared.best[threadIdx.x] = 0;
  if (threadIdx.x == 0) shared.step = 0;
#pragma unroll
  for (unsigned k = threadIdx.x; k < shared.kTokens; k += 32 * kGreedyWarps) {
    const float log_prior = k < span.count ? densities.log_prior[span.begin + k] : -MI_PRUNER_INFINITY,
                given = k < span.count ? scores[span.begin + k] : 0.0f;
    shared.score[k] = start_score(given, log_prior);
    shared.place_of[k] = kNotHere;
    shared.scale_after[k] = scale_of(options, static_cast<int>(k + 1));
    if (kMode == Redundancy::kChain) shared.weight_of[k] = expf(log_prior);
  }
  const WarpSteps steps{found.gram + span.begin * found.gram_stride,
                        static_cast<unsigned>(span.count),
                        static_cast<unsigned>(found.gram_stride) * unsigned{sizeof(float)},
                        static_cast<unsigned>(limit_of(picks, sample, span, slots)),
                        lowest > 1 ? lowest : 1,
                        kept};
  __syncthreads();
  if (warp == 0) {
    const unsigned taken = take_steps<kMode>(shared, steps, options.weight);
    if (threadIdx.x == 0) {
      shared.taken = taken;
      tell(shared_address(&shared.step), kOver);
    }
  } else if (warp % kSchedulers != 0) {
    fetch_rows(shared, steps, warp - 1 - warp / kSchedulers);
  }
  __syncthreads();
  for (unsigned k = threadIdx.x; k < shared.taken; k += blockDim.x) {
    picks.indices[slots.begin + k] = shared.picks[k].index;
    picks.gains[slots.begin + k] = gain_of_rank(shared.picks[k].rank);
  }
  clear_slots(picks, slots, shared.taken, threadIdx.x, blockDim.x);
}

} // namespace mi_pruner::cuda

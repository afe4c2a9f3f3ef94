// Greedy selection of a sample by one warp, or by several that agree at each step, from the redundancy R of all its
// visual tokens with each other.
//
// Algorithm: a step takes the largest gain (the lowest index among equals), and adds the pick's row of R. R of a token
// with itself is NaN, which makes a gain that is never taken again.
//
// Mapping, of a short sample: block = sample; its tokens in the registers of one warp (score, rho), 4 kQuads a lane: no
// step has a barrier, nor anything else that warps would have to agree on. Two `redux` and, mostly, a row from shared
// memory, which other warps brought there: each looks at the best tokens of a share of the lanes, and copies the row of
// the best of these if it has none. Of a longer sample, a warp in each block of a cluster has 256, 384 or 512 of the
// tokens (the last ones maybe none), and others bring its part of rows. It sends the best of its tokens to all blocks,
// in a word that tells the step, and reads those of all; a step later, that of another lane, since what one block has
// best is often the next pick but one. Without clusters, or of very many samples, several warps of one block do the
// same.
//
// Bound by latency: the instructions of a step in series, two reductions over a warp, and a read of shared memory (of
// L2, where the row is not there).
// Determinism: whoever brings a row, it is the same; no sum crosses threads; the sum over the picks runs in their
// order.
#pragma once

#include "cuda/base/paths.h"
#include "cuda/greedy/picks.cuh"
#include "cuda/greedy/step.cuh"

namespace mi_pruner::cuda {

// Who selects from a sample: one warp; several of a block; one of each block of a cluster.
enum class Together { kAlone, kInBlock, kInCluster };

constexpr int kSchedulers = 4;
constexpr unsigned kMostSelecting = kGramTokens / kShortSample; // warps of a block
static_assert(kMostSelecting <= kSchedulers);                   // each has its own
constexpr unsigned kOver = ~0u;                                 // as a step
// Rows of a fetching warp: more would hardly be of use, and it has a lane for each to tell whose they are.
constexpr unsigned kMostKept = 16;

// A block's warps: of several that select, the others share what schedulers these leave.
template <Together kHow> constexpr int kGreedyWarps = (kHow == Together::kInBlock ? 3 : 2) * kSchedulers;
template <Together kHow> constexpr int kGreedyBlocks = kHow == Together::kInCluster ? kClusterBlocks : 1;

// A row's place where it is in memory alone.
constexpr SharedAddress kNotHere = 0;

// Which of a block's warps fetch: those on the schedulers that no warp selects on, if there are any.
struct Fetchers {
  unsigned selecting; // warps, the first ones

  __host__ __device__ constexpr unsigned first() const { return selecting % kSchedulers; } // scheduler
  __host__ __device__ constexpr unsigned turn() const { return selecting / kSchedulers; }  // from which on
  __host__ __device__ constexpr unsigned each() const { return kSchedulers - first(); }

  __host__ __device__ constexpr bool has(unsigned warp) const {
    return warp / kSchedulers >= turn() && warp % kSchedulers >= first();
  }
  __host__ __device__ constexpr unsigned member(unsigned warp) const {
    return (warp / kSchedulers - turn()) * each() + warp % kSchedulers - first();
  }
  constexpr unsigned count(unsigned warps) const { return (warps / kSchedulers - turn()) * each(); }
};

// A word that warps leave for others: the rank of a gain, the token and, above it, the step.
constexpr unsigned kTokenBits = 16;
static_assert(kGramTokens < 1 << kTokenBits);
constexpr uint64_t word_of(unsigned rank, unsigned step, unsigned token) {
  return uint64_t{rank} << 32 | step << kTokenBits | token;
}
constexpr unsigned token_of(uint64_t word) { return static_cast<unsigned>(word) % (1u << kTokenBits); }
constexpr uint64_t kNoWord = word_of(0, (1u << kTokenBits) - 1, 0); // of no step

// Shared memory of a block. Behind it lie a place for each token, its weights or the scales, the picks, and rows.
struct alignas(16) WarpShared {
  // Words; the step is told by the first ones alone.
  uint64_t agreed[2][kClusterBlocks]; // the best of each warp, in odd and even steps
  uint64_t runner_up[kClusterBlocks]; // of the blocks of a cluster: another token of each that is among its best
  uint64_t best[32 * kMostSelecting]; // of the lanes: maybe of several steps
  unsigned step[kMostSelecting];      // that the warps that select have come to; kOver, of the first
  unsigned taken;                     // picks in all

  // By the first warps.
  __device__ void clear() {
    if (threadIdx.x < 32 * kMostSelecting) best[threadIdx.x] = 0;
    if (threadIdx.x < kMostSelecting) step[threadIdx.x] = 0;
    if (threadIdx.x < kClusterBlocks)
      agreed[0][threadIdx.x] = agreed[1][threadIdx.x] = runner_up[threadIdx.x] = kNoWord;
  }
};

// Where: the same for all blocks of a launch.
struct WarpRoom {
  unsigned tokens, picks;          // at the most, in multiples of 4
  unsigned factors;                // weights, of chain; scales, of mean
  unsigned row_bytes;              // of all tokens that the warps hold
  unsigned fetchers = 0, kept = 0; // rows of each

  __host__ __device__ constexpr unsigned rows_at() const {
    return static_cast<unsigned>(sizeof(WarpShared)) + tokens * unsigned{sizeof(SharedAddress)} +
           factors * unsigned{sizeof(float)} + picks * unsigned{sizeof(Ranked)};
  }
  constexpr size_t bytes() const { return rows_at() + size_t{fetchers} * kept * row_bytes; }
  // As many rows as there is room for in so many bytes of a block, two a warp at the least, one of which is always
  // free.
  constexpr void fill(int64_t bytes, unsigned most_fetchers) {
    const int64_t room = (bytes - rows_at()) / row_bytes, rows = room < 2 ? 2 : room;
    fetchers = rows / 2 < most_fetchers ? static_cast<unsigned>(rows / 2) : most_fetchers;
    kept = rows / fetchers < kMostKept ? static_cast<unsigned>(rows / fetchers) : kMostKept;
  }
};

// Of GPUs with the least shared memory, too, the largest selection keeps two rows.
static_assert(WarpRoom{kGramTokens, kGramTokens, kGramTokens, kGramTokens * sizeof(float), 1, 2}.bytes() <=
                  kMostShared ||
              sizeof(SharedAddress) > 4);

// What all warps know of a selection.
struct WarpSteps {
  const float* redundancies;   // of the sample
  unsigned count, first, held; // its tokens; those of the block
  unsigned stride, limit, least, selecting;
  SharedAddress places, rows;
  const float* factors; // what rho gets of a pick's row, of chain; its scale after one pick, two, ..., of mean
  Ranked* picks;

  __device__ const float* row(unsigned token) const {
    return reinterpret_cast<const float*>(at_multiple(redundancies, token, stride));
  }
  __device__ SharedAddress place_of(unsigned token) const { return places + token * unsigned{sizeof(SharedAddress)}; }
};

// The best of all warps' bests of a step, which are left in words at `at`. That of a lower warp has the lower index.
template <Together kHow> __device__ Ranked best_of_warps(SharedAddress at, unsigned selecting, unsigned step) {
  constexpr unsigned kMost = kHow == Together::kInCluster ? kClusterBlocks : kMostSelecting;
  for (;;) {
    uint64_t words[kMost];
#pragma unroll
    for (unsigned warp = 0; warp < kMost; ++warp) {
      const SharedAddress place = at + warp * unsigned{sizeof(uint64_t)};
      if constexpr (kHow == Together::kInCluster)
        words[warp] = load_sent(place);
      else
        words[warp] = warp < selecting ? load_hint(place) : word_of(0, step, 0);
    }
    bool there = true;
    Ranked best[kMost];
#pragma unroll
    for (unsigned warp = 0; warp < kMost; ++warp) {
      there &= static_cast<unsigned>(words[warp]) >> kTokenBits == step;
      best[warp] = {static_cast<unsigned>(words[warp] >> 32), token_of(words[warp])};
    }
#pragma unroll
    for (unsigned apart = 1; apart < kMost; apart *= 2)
#pragma unroll
      for (unsigned warp = 0; warp < kMost; warp += 2 * apart)
        if (best[warp + apart].rank > best[warp].rank) best[warp] = best[warp + apart];
    // By all lanes: they need not have seen the same of a word that came just then.
    if (__ballot_sync(kFullWarp, !there) == 0) return best[0];
    look_again();
  }
}

// What a lane has: four neighbouring tokens for each of kQuads, kApart apart.
template <int kQuads> using LaneTokens = float[kQuads][kQuad];
constexpr unsigned kApart = 32 * kQuad;
template <int kQuads> __device__ unsigned first_token() {
  return threadIdx.x / 32 * (kQuads * kApart) + threadIdx.x % 32 * kQuad;
}

// The row of a pick, of the lane's tokens, of which the block's are those from `here` on, the sample's those from
// `first`. Beyond the sample, anything: its tokens are not to be picked.
template <int kQuads>
__device__ void load_row(const WarpSteps& steps, unsigned pick, SharedAddress place, unsigned here, unsigned first,
                         float4 (&row)[kQuads]) {
  if (place != kNotHere) [[likely]] {
#pragma unroll
    for (int q = 0; q < kQuads; ++q)
      row[q] = load_four(place + (here + kApart * q) * unsigned{sizeof(float)});
  } else {
    const float* const from = steps.row(pick) + first;
#pragma unroll
    for (int q = 0; q < kQuads; ++q)
      row[q] = first + kApart * q < steps.count ? __ldg(reinterpret_cast<const float4*>(from + kApart * q)) : float4{};
  }
}

// By the warps that select, from scores that are NaN where a token is not to be picked; returns the number of picks.
// Nothing branches but where a row is not here, or words of other warps are awaited.
template <Redundancy kMode, int kQuads, Together kHow>
__device__ unsigned take_steps(WarpShared& shared, const WarpSteps& steps, unsigned warp,
                               const LaneTokens<kQuads>& score, float scale) {
  constexpr bool kInCluster = kHow == Together::kInCluster;
  // `here`: among those of the block.
  unsigned lane = threadIdx.x % 32, here = first_token<kQuads>(), first = steps.first + here, step = 0,
           least = steps.least;
  keep(lane);
  keep(here);
  keep(first);
  keep(least);
  const unsigned number = kInCluster ? steps.first / (kQuads * kApart) : warp; // of those that select
  SharedAddress own_best = shared_address(shared.best + threadIdx.x), places = steps.places,
                step_place = shared_address(shared.step + warp), agreed = shared_address(shared.agreed);
  uint64_t *own_agreed = &shared.agreed[0][number], *own_runner_up = shared.runner_up + number;
  if constexpr (kInCluster) { // of the block whose number is the lane's
    own_agreed = place_in(own_agreed, lane % kClusterBlocks);
    own_runner_up = place_in(own_runner_up, lane % kClusterBlocks);
  }
  keep(own_best);
  keep(places);
  keep(step_place);
  keep(agreed);
  const SharedPlace<Ranked> picks_place(steps.picks);
  const float* next_factor = steps.factors;
  LaneTokens<kQuads> rho{}; // NaN: picked
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
      index[q] = kApart * q + kQuad - 1;
#pragma unroll
      for (int e = kQuad - 2; e >= 0; --e)
        if (gain[e] == most[q]) index[q] = kApart * q + e;
    }
    unsigned rank = rank_of(all);
    keep(rank); // beside the test for NaN, not after it
    rank = isnan(all) ? 0 : rank;
    unsigned best = __reduce_max_sync(kFullWarp, rank);
    const float next_scale = kMode == Redundancy::kMean ? *next_factor : scale; // on the way, it would be waited for
    unsigned own = rank == 0 ? 0 : index[kQuads - 1];
#pragma unroll
    for (int q = kQuads - 2; q >= 0; --q)
      own = most[q] == all ? index[q] : own;
    own += first;
    if constexpr (!kInCluster) store_hint(own_best, word_of(rank, 0, own));
    unsigned pick = __reduce_min_sync(kFullWarp, rank == best ? own : ~0u), runner_up = 0, next = 0;
    if constexpr (kHow != Together::kAlone) {
      const unsigned odd = step % 2 * kClusterBlocks;
      if constexpr (kInCluster) {
        if (lane < kClusterBlocks) send_hint(own_agreed + odd, word_of(best, step, pick));
        const unsigned other = own == pick ? 0 : rank;
        runner_up = __reduce_max_sync(kFullWarp, other);
        next = __reduce_min_sync(kFullWarp, other == runner_up ? own : ~0u);
      } else if (lane == 0) {
        store_hint(shared_address(own_agreed + odd), word_of(best, step, pick));
      }
      const Ranked of_all = best_of_warps<kHow>(agreed + odd * unsigned{sizeof(uint64_t)}, steps.selecting, step);
      best = of_all.rank;
      pick = of_all.index;
    }
    const SharedAddress place = told<SharedAddress>(places + pick * unsigned{sizeof(SharedAddress)});
    float4 row[kQuads];
    load_row(steps, pick, place, here, first, row);
    const float weight = kMode == Redundancy::kChain ? steps.factors[pick] : 1.0f;
    const bool picked = best >= least;
    picks_place.store_if(picked && first == 0, step, {best, pick});
    if (picked) ++step, ++next_factor;
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
    if constexpr (kInCluster) {
      if (lane < kClusterBlocks) send_hint(own_runner_up, word_of(runner_up, 0, next));
      // Nobody wants the row any more. In place of none, that of any: what is read there is not looked at.
      if (picked && lane == 0) pass(steps.place_of(pick), steps.rows);
    }
    if (lane == 0) pass(step_place, step);
  } while (!last);
  return step;
}

// By the other warps, `member`: the block's part of rows of the best tokens, of those words whose number is the warp's
// modulo theirs.
template <Together kHow>
__device__ void fetch_rows(WarpShared& shared, const WarpSteps& steps, const WarpRoom& room, unsigned member) {
  const unsigned lane = threadIdx.x % 32;
  const bool looks = lane % room.fetchers == member;
  unsigned turn = 0;     // which of its rows comes next; what was there is forgotten
  unsigned held = kOver; // of the row whose number is this lane's: whose it is
  // The step that all warps must have come to before a row may be overwritten: until then they may read it. Its place
  // is forgotten before their steps are looked at, and they pass a step before they look for a place: shared memory
  // serves accesses in their order.
  unsigned free_from = 0;
  const auto word = [&](unsigned warp) {
    if constexpr (kHow == Together::kInCluster) {
      constexpr unsigned kWords = 3 * kClusterBlocks; // of both, side by side
      return lane < kWords ? load_sent(shared_address(shared.agreed) + lane * unsigned{sizeof(uint64_t)}) : kNoWord;
    } else {
      return load_hint(shared_address(shared.best + 32 * warp + lane));
    }
  };
  const auto step_of = [&](unsigned warp) { return told<unsigned>(shared_address(shared.step + warp)); };
  while (__reduce_max_sync(kFullWarp, step_of(0)) != kOver) {
    unsigned behind = kOver, most = 0, rank = 0, index = 0;
#pragma unroll 1
    for (unsigned warp = 0; warp < steps.selecting; ++warp) {
      const unsigned step = step_of(warp);
      behind = step < behind ? step : behind;
      const uint64_t seen = word(warp);
      const unsigned seen_rank = static_cast<unsigned>(seen >> 32), seen_index = token_of(seen);
      most = seen_rank > most ? seen_rank : most;
      if (!looks || seen_rank <= rank || told<SharedAddress>(steps.place_of(seen_index)) != kNotHere) continue;
      rank = seen_rank;
      index = seen_index;
    }
    // In this step: its row would come too late. (Words of a cluster may be of several steps.)
    const unsigned picked = kHow == Together::kInCluster ? 0 : __reduce_max_sync(kFullWarp, most);
    const unsigned best = __reduce_max_sync(kFullWarp, rank != picked ? rank : 0),
                   lanes = __ballot_sync(kFullWarp, best > 0 && rank == best);
    if (lanes == 0 || __reduce_min_sync(kFullWarp, behind) < free_from) {
      wait_a_moment();
      continue;
    }
    const unsigned token = __shfl_sync(kFullWarp, index, __ffs(static_cast<int>(lanes)) - 1);
    const float* const from = steps.row(token) + steps.first;
    const SharedAddress to = steps.rows + (member * room.kept + turn) * room.row_bytes;
    for (unsigned at = kQuad * lane; at < steps.held; at += 32 * kQuad)
      copy_async(to + at * unsigned{sizeof(float)}, from + at);
    commit_copies();
    wait_for_copies<0>();
    __syncwarp();
    if (lane == 0) tell(steps.place_of(token), to);
    if (lane == turn) held = token;
    turn = turn + 1 == room.kept ? 0 : turn + 1;
    const unsigned forgotten = __shfl_sync(kFullWarp, held, static_cast<int>(turn));
    if (forgotten == kOver) continue;
    if (lane == 0) tell(steps.place_of(forgotten), kNotHere);
    __syncwarp();
    unsigned ahead = 0;
#pragma unroll 1
    for (unsigned warp = 0; warp < steps.selecting; ++warp) {
      const unsigned step = step_of(warp);
      ahead = step > ahead ? step : ahead;
    }
    free_from = __reduce_max_sync(kFullWarp, ahead) + 1;
  }
}

template <Redundancy kMode, int kQuads, Together kHow>
__device__ void select_by_warps(const Layout& visual, const float* scores, const Similarities& found,
                                const Densities& densities, const Selection& selection, const Picks& picks,
                                const WarpRoom& room, unsigned selecting, WarpShared& shared) {
  constexpr bool kInCluster = kHow == Together::kInCluster;
  constexpr unsigned kThreads = 32 * kGreedyWarps<kHow>;
  const int64_t sample = blockIdx.x / kGreedyBlocks<kHow>;
  const unsigned first = blockIdx.x % kGreedyBlocks<kHow> * (kQuads * kApart);
  const Span span = span_of(visual, sample), slots = span_of(picks.slots, sample);
  const Selection options{selection.kappa, kMode, selection.weight};
  const unsigned warp = __shfl_sync(kFullWarp, threadIdx.x / 32, 0), lowest = rank_of(picks.min_gain);
  SharedAddress* const place_of = reinterpret_cast<SharedAddress*>(&shared + 1);
  float* const factors = reinterpret_cast<float*>(place_of + room.tokens);
  Ranked* const taken_picks = reinterpret_cast<Ranked*>(factors + room.factors);
  // Scores to begin with, of all tokens that the warps hold, in the place of rows until they are in registers.
  float* const start = reinterpret_cast<float*>(taken_picks + room.picks);
  shared.clear();
  const unsigned held = kQuads * kApart * (kHow == Together::kInBlock ? selecting : 1);
#pragma unroll kQuads
  for (unsigned k = threadIdx.x; k < held; k += kThreads) {
    const bool inside = first + k < span.count;
    const int64_t token = span.begin + first + k;
    start[k] = start_score(inside ? scores[token] : 0.0f, inside ? densities.log_prior[token] : -MI_PRUNER_INFINITY);
  }
  for (unsigned k = threadIdx.x; k < room.tokens; k += kThreads)
    place_of[k] = kNotHere;
  for (unsigned k = threadIdx.x; k < room.factors; k += kThreads)
    if (kMode == Redundancy::kMean)
      factors[k] = scale_of(options, static_cast<int>(k + 1));
    else if (k < span.count)
      factors[k] = expf(densities.log_prior[span.begin + k]);
  const int64_t left = span.count - int64_t{first};
  const WarpSteps steps{found.gram + span.begin * found.gram_stride,
                        static_cast<unsigned>(span.count),
                        first,
                        left < 0      ? 0
                        : left < held ? static_cast<unsigned>(left)
                                      : held,
                        static_cast<unsigned>(found.gram_stride) * unsigned{sizeof(float)},
                        static_cast<unsigned>(limit_of(picks, sample, span, slots)),
                        lowest > 1 ? lowest : 1,
                        selecting,
                        shared_address(place_of),
                        shared_address(start),
                        factors,
                        taken_picks};
  if (kInCluster)
    cluster_barrier(); // words may come
  else
    __syncthreads();
  const Fetchers fetchers{selecting};
  LaneTokens<kQuads> score{};
  if (warp < selecting)
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const float4 four = reinterpret_cast<const float4*>(start)[(first_token<kQuads>() + kApart * q) / kQuad];
      score[q][0] = four.x;
      score[q][1] = four.y;
      score[q][2] = four.z;
      score[q][3] = four.w;
    }
  __syncthreads(); // rows come where they were
  if (warp < selecting) {
    const unsigned taken = take_steps<kMode, kQuads, kHow>(shared, steps, warp, score, options.weight);
    if (threadIdx.x == 0) {
      shared.taken = taken;
      tell(shared_address(shared.step), kOver);
    }
  } else if (fetchers.has(warp) && fetchers.member(warp) < room.fetchers) {
    fetch_rows<kHow>(shared, steps, room, fetchers.member(warp));
  }
  if (kInCluster) cluster_barrier(); // no more words come
  if (first > 0) return;
  __syncthreads();
  for (unsigned k = threadIdx.x; k < shared.taken; k += blockDim.x) {
    picks.indices[slots.begin + k] = taken_picks[k].index;
    picks.gains[slots.begin + k] = gain_of_rank(taken_picks[k].rank);
  }
  clear_slots(picks, slots, shared.taken, threadIdx.x, blockDim.x);
}

// Whether the code has instructions for it: elsewhere the kernel has no body, and says so by its launch bounds.
template <Together kHow> constexpr bool selects_here() { return kHow != Together::kInCluster || kHasClusters; }

// `selecting`: warps of a block.
template <Redundancy kMode, int kQuads, Together kHow>
__global__ void __launch_bounds__(selects_here<kHow>() ? 32 * kGreedyWarps<kHow> : 32, 1)
    greedy_warp_kernel(const Layout visual, const float* const scores, const Similarities found,
                       const Densities densities, const Selection selection, const Picks picks, const WarpRoom room,
                       const unsigned selecting) {
  MI_PRUNER_SHARED(WarpShared, shared);
  if constexpr (selects_here<kHow>())
    select_by_warps<kMode, kQuads, kHow>(visual, scores, found, densities, selection, picks, room, selecting, shared);
}

} // namespace mi_pruner::cuda

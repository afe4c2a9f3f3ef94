// Greedy selection from many tokens: exact, on rows of cosines that are computed for the likely next picks.
//
// Algorithm: only the rows of picked tokens are ever needed, and which will be picked is nearly known. When a pick has
// no row yet, one product computes its row and those of the 127 next best candidates by current gain. A row's bits do
// not depend on the block of rows it is computed in: the picks are those of the full matrix. Rows are kept in a ring
// of kGenerations such blocks; one that is overwritten too early is computed again.
//
// Mapping: one persistent launch; the blocks are split into teams, a team for a sample at a time. Token i of a sample
// belongs to thread i % 256 of member i / 256 % members, the tiles of a product to the members in turn. Members meet
// at a barrier in global memory (all blocks are resident: a cooperative launch): once a step, where each posts its
// best token, and three times more for a product. Not a thread-block cluster: its steps would be shorter, but the
// products, most of the time, would have 16 multiprocessors.
//
// Cost: 2 D flops for each cosine of about 1.5 K rows; `visual` is read once for 128 rows. Bound by L2 and the tensor
// cores in the products, by the latency of the barrier (about a microsecond) in the steps.
//
// Determinism: as in greedy.cuh; the number of members and teams touches no sum.
#pragma once

#include "cuda/gain.cuh"
#include "cuda/tile.cuh"

namespace mi_pruner::cuda {

constexpr int32_t kNoRow = -1, kPicked = -2; // in place of a token's row

struct RowShared {
  TileShared<> tile;
  Post posts[kTileThreads / 32];
  uint64_t best[kTileThreads / 32];
  uint64_t candidates[kMostCandidates];
  int64_t chosen[kTileRows]; // tokens of the rows of a product, -1 for none
};

// A team's barrier: everything that a member wrote before it is seen by all members after it.
class TeamBarrier {
public:
  __device__ TeamBarrier(unsigned* arrivals, int64_t members)
      : arrivals_(arrivals), members_(static_cast<unsigned>(members)), expected_(0) {}

  __device__ void wait() {
    expected_ += members_;
    __syncthreads(); // what the block's threads wrote is released with the arrival: release is cumulative
    if (threadIdx.x == 0) {
      add_release(arrivals_, 1u);
      while (static_cast<int>(load_acquire(arrivals_) - expected_) < 0)
        wait_a_moment();
    }
    __syncthreads();
  }

private:
  unsigned* arrivals_;
  unsigned members_, expected_; // arrivals so far, when all have come
};

// One member's part in its team.
template <typename T> struct RowTeam {
  const Tokens& visual;
  const int64_t dim;
  const float* scores;
  const Densities& densities;
  const Selection& selection;
  const RowMemory& memory;
  const Picks& picks;
  RowShared& shared;
  const unsigned team, member;
  TeamBarrier barrier;
  unsigned round; // posts so far: they alternate between two places

  // f(token of the sample) for the tokens of this thread.
  template <typename F> __device__ void for_each_own(const Span& span, const F& f) const {
    for (int64_t i = member * kTileThreads + threadIdx.x; i < span.count; i += memory.members * kTileThreads)
      f(i);
  }

  __device__ bool owns(int64_t i) const { return i / kTileThreads % memory.members == member; }

  __device__ uint64_t key_at(const Span& span, int64_t i, float scale) const {
    return key_of(gain_from(pickable(scores[span.begin + i]), memory.rho[span.begin + i], scale), i);
  }

  // The largest of the threads' keys, to all of the block.
  __device__ uint64_t block_best(uint64_t key) {
    key = warp_best(key);
    if (threadIdx.x % 32 == 0) shared.best[threadIdx.x / 32] = key;
    __syncthreads();
    key = 0;
    for (int warp = 0; warp < kTileThreads / 32; ++warp)
      key = shared.best[warp] > key ? shared.best[warp] : key;
    __syncthreads();
    return key;
  }

  __device__ void start(const Span& span) {
    for_each_own(span, [&](int64_t i) {
      memory.rho[span.begin + i] = 0;
      memory.slot[span.begin + i] = densities.log_prior[span.begin + i] > -MI_PRUNER_INFINITY ? kNoRow : kPicked;
    });
  }

  // The team's best token: each member posts its own, and reads all.
  __device__ Post agree(const Span& span, uint64_t own) {
    const uint64_t best = block_best(own);
    Post* const posts = memory.posts + (round % 2 * memory.teams + team) * memory.members;
    ++round;
    if (threadIdx.x == 0) {
      const int64_t slot = best == 0 ? kNoRow : memory.slot[span.begin + index_of(best)];
      posts[member] = {best, slot};
    }
    barrier.wait();
    Post top{0, kNoRow};
    for (int64_t m = threadIdx.x; m < memory.members; m += kTileThreads) {
      const Post post = load_whole(posts + m);
      if (post.key > top.key) top = post;
    }
    const uint64_t winner = warp_best(top.key);
    if (winner == top.key && (winner != 0 || threadIdx.x % 32 == 0)) shared.posts[threadIdx.x / 32] = top;
    __syncthreads();
    top = shared.posts[0];
    for (int warp = 1; warp < kTileThreads / 32; ++warp)
      if (shared.posts[warp].key > top.key) top = shared.posts[warp];
    __syncthreads();
    return top;
  }

  // The tokens of the next product, in shared.chosen: `pick`, then the best of those that have no row.
  __device__ void choose(const Span& span, int64_t pick, float scale) {
    const int64_t each = (kProposals + memory.members - 1) / memory.members, count = each * memory.members;
    uint64_t* const proposed = memory.candidates + team * kMostCandidates;
    uint64_t below = ~uint64_t{0};
    for (int64_t k = 0; k < each; ++k) {
      uint64_t best = 0;
      if (below != 0)
        for_each_own(span, [&](int64_t i) {
          if (memory.slot[span.begin + i] != kNoRow) return;
          const uint64_t key = key_at(span, i, scale);
          if (key < below && key > best) best = key;
        });
      below = block_best(best);
      if (threadIdx.x == 0) proposed[member * each + k] = below;
    }
    if (threadIdx.x < kTileRows) shared.chosen[threadIdx.x] = threadIdx.x == 0 ? pick : -1;
    barrier.wait();
    for (int64_t k = threadIdx.x; k < count; k += kTileThreads)
      shared.candidates[k] = __ldcg(proposed + k);
    __syncthreads();
    for (int64_t k = threadIdx.x; k < count; k += kTileThreads) {
      const uint64_t key = shared.candidates[k];
      int64_t rank = 1; // after the pick
      for (int64_t other = 0; other < count; ++other)
        rank += shared.candidates[other] > key;
      if (key != 0 && rank < kTileRows) shared.chosen[rank] = index_of(key);
    }
    __syncthreads();
  }

  // Rows of cosines of the chosen tokens with all, and their normalisers, in the places from `base` on.
  __device__ void multiply(const Span& span, int64_t sample, int64_t base) {
    const Rows<T> features = rows_of<T>(visual, sample, span);
    const int64_t tiles = (span.count + kTileColumns - 1) / kTileColumns, places = team * kCachedRows + base;
    for (int64_t at = member; at < tiles; at += memory.members) {
      const int64_t first = at * kTileColumns, left = span.count - first;
      const TileSource<T> source(
          features, [&](int r) { return shared.chosen[r]; }, features,
          [&](int c) { return first + c < span.count ? first + c : -1; }, shared.tile);
      TileFragment tile;
      cosine_tile(source, dim, left < kTileColumns ? static_cast<int>(left) : kTileColumns, shared.tile, tile);
      store_column_weights(visual.prior, span.begin, first, span.count, shared.tile);
#pragma unroll
      for (int r = 0; r < kOwnRows; ++r) {
        const int row = fragment_row(r);
        if (shared.chosen[row] >= 0)
          store_row(tile, r, memory.rows + (places + row) * memory.row_stride, first, span.count);
      }
      for_each_part(tile, selection.kappa, shared.tile, [&](int row, const LogSum& part) {
        if (shared.chosen[row] >= 0) memory.parts[(places + row) * memory.tiles + at] = part;
      });
    }
    barrier.wait();
    for (int64_t row = member * (kTileThreads / 32) + threadIdx.x / 32; row < kTileRows;
         row += memory.members * (kTileThreads / 32)) {
      if (shared.chosen[row] < 0) continue;
      const float log_z = log_of_parts(memory.parts + (places + row) * memory.tiles, tiles);
      if (threadIdx.x % 32 == 0) memory.log_z[places + row] = log_z - densities.log_total[sample];
    }
    barrier.wait();
  }

  // Gives `pick` and other candidates rows in a generation of the ring, whose former rows are forgotten.
  __device__ void produce(const Span& span, int64_t sample, int64_t pick, float scale, int64_t generation) {
    const int32_t base = static_cast<int32_t>(generation * kTileRows);
    for_each_own(span, [&](int64_t i) {
      int32_t& slot = memory.slot[span.begin + i];
      if (slot >= base && slot < base + kTileRows) slot = kNoRow;
    });
    choose(span, pick, scale);
    if (threadIdx.x > 0 && threadIdx.x < kTileRows) {
      const int64_t token = shared.chosen[threadIdx.x];
      if (token >= 0 && owns(token)) memory.slot[span.begin + token] = base + static_cast<int32_t>(threadIdx.x);
    }
    multiply(span, sample, base);
  }

  // rho with the row in `place`; returns this thread's best key.
  __device__ uint64_t step(const Span& span, int64_t place, float prior, int64_t picked) const {
    const float* const row = memory.rows + (team * kCachedRows + place) * memory.row_stride;
    const float log_z = picked == 0 ? 0.0f : __ldcg(memory.log_z + team * kCachedRows + place);
    const float scale = scale_of(selection, picked);
    uint64_t best = 0;
    for_each_own(span, [&](int64_t i) {
      const int64_t token = span.begin + i;
      if (memory.slot[token] == kPicked) return;
      if (picked > 0)
        memory.rho[token] = joined(memory.rho[token],
                                   redundancy_of(__ldcg(row + i), log_z, densities.log_prior[token], selection.kappa),
                                   selection.redundancy, picked, prior);
      const uint64_t key = key_at(span, i, scale);
      if (key > best) best = key;
    });
    return best;
  }

  __device__ void select(int64_t sample) {
    const Span span = span_of(visual.layout, sample), slots = span_of(picks.slots, sample);
    const int64_t limit = limit_of(picks, sample, slots);
    int64_t picked = 0, place = 0, products = 0;
    float prior = 0;
    start(span);
    while (picked < limit) {
      const Post best = agree(span, step(span, place, prior, picked));
      if (best.key == 0 || gain_of(best.key) < picks.min_gain) break;
      const int64_t pick = index_of(best.key);
      if (member == 0 && threadIdx.x == 0) {
        picks.indices[slots.begin + picked] = pick;
        picks.gains[slots.begin + picked] = gain_of(best.key);
      }
      if (owns(pick) && pick % kTileThreads == threadIdx.x) memory.slot[span.begin + pick] = kPicked;
      if (picked + 1 == limit) {
        ++picked;
        break;
      }
      place = best.slot;
      if (place == kNoRow) {
        const int64_t generation = products++ % kGenerations;
        produce(span, sample, pick, scale_of(selection, picked), generation);
        place = generation * kTileRows;
      }
      if (selection.redundancy == Redundancy::kChain) prior = expf(densities.log_prior[span.begin + pick]);
      ++picked;
    }
    clear_slots(picks, slots, picked, member * kTileThreads + threadIdx.x, memory.members * kTileThreads);
  }
};

template <typename T>
__global__ void __launch_bounds__(kTileThreads,
                                  1) // one a multiprocessor: more members would only make the barrier slower
    rows_kernel(const Tokens visual, const int64_t dim, const float* const scores, const Densities densities,
                const Selection selection, const RowMemory memory, const Picks picks) {
  MI_PRUNER_SHARED(RowShared, shared);
  const unsigned members = static_cast<unsigned>(memory.members), team = blockIdx.x / members,
                 member = blockIdx.x % members;
  RowTeam<T> self{visual,
                  dim,
                  scores,
                  densities,
                  selection,
                  memory,
                  picks,
                  shared,
                  team,
                  member,
                  TeamBarrier(memory.arrivals + team, memory.members),
                  0};
  for (int64_t sample = team; sample < visual.layout.samples; sample += memory.teams)
    self.select(sample);
}

} // namespace mi_pruner::cuda

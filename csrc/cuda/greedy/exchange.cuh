// Where the blocks of the row path meet: in shared memory, in a cluster, in global memory.
#pragma once

#include "cuda/greedy/row_tokens.cuh"

namespace mi_pruner::cuda {

constexpr int kClusterWarps = kClusterBlocks * kRowWarps;
constexpr int kSeen = kClusterWarps / 32; // of a cluster's posts, by a lane
static_assert(kClusterWarps % 32 == 0 && kClusterBlocks <= 32);

// Of the products: of the norms that the similarities left.
template <bool kByGroups> using RowTile = TileShape<kTileColumns, 1, kByGroups, true>;

template <typename Tile> struct RowShared {
  union { // never both: what was fetched ahead is dropped before a product
    TileShared<Tile> tile;
    float4 ahead[kHeldQuads][kTileThreads]; // each thread's own part of the row of a likely next pick
  };
  Post posts[2][kClusterWarps]; // of the warps of a cluster, for odd and even steps
  Arrivals arrivals[2];         // of these posts
  Post best[kRowWarps];
  uint64_t candidates[kMostCandidates];
  int64_t chosen[kTileRows]; // tokens of the rows of a product, -1 for none
};
static_assert(sizeof(RowShared<RowTile<false>>) <= kMostShared);

// The best of the threads' candidates, to all of the block.
template <typename Tile> __device__ Post block_best(Post mine, RowShared<Tile>& shared) {
  mine = warp_best(mine);
  if (threadIdx.x % 32 == 0) shared.best[threadIdx.x / 32] = mine;
  __syncthreads();
  Post best = shared.best[0];
  for (int warp = 1; warp < kRowWarps; ++warp)
    if (shared.best[warp].key > best.key) best = shared.best[warp];
  __syncthreads();
  return best;
}

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

// How the warps of a cluster agree: each sends its best to the shared memory of every block, and reads what all have
// sent. There is no barrier: a warp goes on once its block has the posts of all. Two places for the posts, used in
// turns: who sends to one again has all posts to the other one, and those were sent after the former had been read.
template <typename Tile> class ClusterExchange {
public:
  // For all blocks of the cluster, before the first exchange: a block's shared memory is there once it runs.
  static __device__ void prepare(RowShared<Tile>& shared) {
    if (threadIdx.x == 0)
      for (Arrivals& arrivals : shared.arrivals) {
        start_arrivals(&arrivals);
        expect_arrivals(&arrivals, kBytes);
      }
    cluster_barrier();
  }

  __device__ ClusterExchange(RowShared<Tile>& shared, unsigned& round, unsigned block)
      : shared_(shared), round_(round), block_(block), seen_{}, ahead_{} {}

  // `rows`: of the team's ring. While the others come, fetches the row of the last step's runner-up.
  __device__ Post agree(const Post& mine, const RowQuad (&held)[kHeldQuads], const float* rows, int64_t stride,
                        int64_t count) {
    const unsigned lane = threadIdx.x % 32, place = block_ * kRowWarps + threadIdx.x / 32;
    const Post best = warp_best(mine);
    Post* const posts = shared_.posts[round_ % 2];
    Arrivals* const arrivals = &shared_.arrivals[round_ % 2];
    __syncwarp(); // all lanes have read the last posts, which others may overwrite once they have this one
    if (lane < kClusterBlocks) send_async(posts + place, best, arrivals, lane);
    fetch_ahead(held, rows, stride, count);
    wait_for_arrivals(arrivals, round_ / 2);
    if (threadIdx.x == 0) expect_arrivals(arrivals, kBytes); // before this warp sends again, so before any may
    ++round_;
#pragma unroll
    for (int k = 0; k < kSeen; ++k)
      seen_[k] = posts[lane + 32 * k];
    const Post top = warp_best(best_seen());
#pragma unroll
    for (int k = 0; k < kSeen; ++k)
      if (seen_[k].key == top.key) seen_[k] = {};
    return top;
  }

  // Whether this thread's part of the row of `pick` is in shared memory, as held[k] at `at(k)`.
  __device__ bool has(int64_t pick) const {
    if (ahead_.key == 0 || index_of(ahead_.key) != pick) return false;
    wait_for_copies<0>();
    return true;
  }

  __device__ float4 at(int k) const { return shared_.ahead[k][threadIdx.x]; }

private:
  static constexpr unsigned kBytes = kClusterWarps * sizeof(Post);

  __device__ Post best_seen() const {
    Post best = seen_[0];
#pragma unroll
    for (int k = 1; k < kSeen; ++k)
      if (seen_[k].key > best.key) best = seen_[k];
    return best;
  }

  // From registers: the posts may be overwritten once this warp has sent its own.
  __device__ void fetch_ahead(const RowQuad (&held)[kHeldQuads], const float* rows, int64_t stride, int64_t count) {
    const Post next = warp_best(best_seen());
    if (next.key == 0 || next.slot == kNoRow) return;
    if (ahead_.key != 0 && index_of(ahead_.key) == index_of(next.key)) return;
    wait_for_copies<0>(); // of a row that was not picked
    ahead_ = next;
#pragma unroll
    for (int k = 0; k < kHeldQuads; ++k)
      if (held[k].first < count)
        copy_async(shared_address(&shared_.ahead[k][threadIdx.x]), rows + next.slot * stride + held[k].first);
    commit_copies();
  }

  RowShared<Tile>& shared_;
  unsigned& round_; // exchanges of the block so far
  const unsigned block_;
  Post seen_[kSeen]; // posts of the last step, without its pick
  Post ahead_;       // whose row is fetched
};

} // namespace mi_pruner::cuda

// How the warps that take the steps of the row path agree on a pick, and what a block of it has in shared memory.
#pragma once

#include "cuda/greedy/row_tokens.cuh"

namespace mi_pruner::cuda {

constexpr int kMostWarps = kClusterBlocks * kRowWarps;
constexpr int kSeen = kMostWarps / 32; // posts that a lane reads
static_assert(kMostWarps % 32 == 0 && kClusterBlocks <= 32);

// Candidates that the warps propose, twice as many as a product takes: the best are spread unevenly over warps. Not
// more of each, where few have tokens.
constexpr int kProposals = 2 * kProductRows, kMostOfWarp = 16;
static_assert(kProposals <= kTileThreads);

// Of the products: columns from anywhere, of the norms that the similarities left.
template <bool kByGroups> using RowTile = TileShape<kProductRows, 1, kByGroups, true, true>;

template <typename Tile> struct RowShared {
  union { // never both: what was fetched ahead is dropped before the block helps with a product
    TileShared<Tile> tile;
    float4 ahead[kHeldQuads][kTileThreads]; // each thread's own part of the row of a likely next pick
  };
  Post posts[2][kMostWarps];                                 // of the warps, for odd and even steps
  Arrivals arrivals[2];                                      // of these posts, in a cluster
  alignas(8) uint16_t slot[kHeldQuads][kTileThreads][kQuad]; // of the tokens that threads hold
  uint64_t candidates[kProposals];
  int chosen[kProductRows]; // of the product that is on offer, or that the block helps with
  int found;                // by the first thread, for all
  unsigned role;            // of the cluster: its first block's
};
static_assert(sizeof(RowShared<RowTile<false>>) <= kMostShared);

// Each warp sends its post to the shared memory of every block, and reads what all have sent. In a cluster there is no
// barrier: a warp goes on once its block has the posts of all. Two places for the posts, used in turns: who sends to
// one again has all posts to the other one, and those were sent after the former had been read.
template <typename Tile> class Exchange {
public:
  // For all blocks of a cluster, before the first exchange: a block's shared memory is there once it runs.
  static __device__ void prepare(RowShared<Tile>& shared) {
    if (threadIdx.x == 0)
      for (Arrivals& arrivals : shared.arrivals) {
        start_arrivals(&arrivals);
        expect_arrivals(&arrivals, kBytes);
      }
    cluster_barrier();
  }

  __device__ Exchange(RowShared<Tile>& shared, const Deal& deal) : shared_(shared), deal_(deal), seen_{}, ahead_{} {}

  __device__ int warps() const { return deal_.blocks() * kRowWarps; }

  // The best of all, and the first warp's word. `rows`: of the team's ring. While the others come, fetches the row of
  // the last step's runner-up.
  template <int kQuads> __device__ Post agree(const Post& mine, const float* rows, int64_t stride, int64_t count) {
    meet(mine, [&] { fetch_ahead<kQuads>(rows, stride, count); });
    const unsigned is_done = __shfl_sync(kFullWarp, seen_[0].is_done, 0);
    Post top = warp_best(best_seen());
    top.is_done = is_done;
#pragma unroll
    for (int k = 0; k < kSeen; ++k)
      if (seen_[k].key == top.key) seen_[k] = {};
    return top;
  }

  // The posts of the first `count` warps that tokens are dealt to, to shared.candidates, by the first warp.
  __device__ void gather(const Post& mine, int first, int count) {
    meet(mine, [] {});
    if (threadIdx.x >= 32) return;
#pragma unroll
    for (int k = 0; k < kSeen; ++k) {
      const int turn = place_of(k) % kRowWarps * deal_.blocks() + place_of(k) / kRowWarps;
      if (place_of(k) < warps() && turn < count && first + turn < kProposals)
        shared_.candidates[first + turn] = seen_[k].key;
    }
  }

  // Whether this thread's part of the row of `pick` is in shared memory, as its k-th quad at `at(k)`.
  __device__ bool has(int64_t pick) const {
    if (ahead_.key == 0 || index_of(ahead_.key) != pick) return false;
    wait_for_copies<0>();
    return true;
  }

  __device__ float4 at(int k) const { return shared_.ahead[k][threadIdx.x]; }

  // Rows that were seen or fetched may be overwritten, and where they were fetched to.
  __device__ void forget() {
    wait_for_copies<0>();
    ahead_ = {};
#pragma unroll
    for (int k = 0; k < kSeen; ++k)
      seen_[k] = {};
  }

private:
  static constexpr unsigned kBytes = kMostWarps * sizeof(Post);

  __device__ static int place_of(int k) { return static_cast<int>(threadIdx.x) % 32 + 32 * k; }

  template <typename Meanwhile> __device__ void meet(const Post& mine, const Meanwhile& meanwhile) {
    const unsigned lane = threadIdx.x % 32, place = deal_.block * kRowWarps + threadIdx.x / 32;
    Post* const posts = shared_.posts[round_ % 2];
    Arrivals* const arrivals = &shared_.arrivals[round_ % 2];
    __syncwarp(); // all lanes have read the last posts, which others may overwrite once they have this one
    if (!deal_.clustered && lane == 0) posts[place] = mine;
    if (deal_.clustered && lane < kClusterBlocks) send_async(posts + place, mine, arrivals, lane);
    meanwhile();
    if (deal_.clustered) {
      wait_for_arrivals(arrivals, round_ / 2);
      if (threadIdx.x == 0) expect_arrivals(arrivals, kBytes); // before this warp sends again, so before any may
    } else {
      __syncthreads();
    }
    ++round_;
#pragma unroll
    for (int k = 0; k < kSeen; ++k)
      seen_[k] = place_of(k) < warps() ? posts[place_of(k)] : Post{};
  }

  __device__ Post best_seen() const {
    Post best = seen_[0];
#pragma unroll
    for (int k = 1; k < kSeen; ++k)
      if (seen_[k].key > best.key) best = seen_[k];
    return best;
  }

  // From registers: the posts may be overwritten once this warp has sent its own.
  template <int kQuads> __device__ void fetch_ahead(const float* rows, int64_t stride, int64_t count) {
    const Post next = warp_best(best_seen());
    if (next.key == 0 || next.slot == kNoRow) return;
    if (ahead_.key != 0 && index_of(ahead_.key) == index_of(next.key)) return;
    wait_for_copies<0>(); // of a row that was not picked
    ahead_ = next;
#pragma unroll
    for (int k = 0; k < kQuads; ++k)
      if (deal_.first(k) < count)
        copy_async(shared_address(&shared_.ahead[k][threadIdx.x]), rows + next.slot * stride + deal_.first(k));
    commit_copies();
  }

  RowShared<Tile>& shared_;
  const Deal deal_;
  unsigned round_ = 0; // exchanges of the block so far
  Post seen_[kSeen];   // posts of the last step, without its pick
  Post ahead_;         // whose row is fetched
};

} // namespace mi_pruner::cuda

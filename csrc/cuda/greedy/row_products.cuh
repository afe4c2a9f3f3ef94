// Products of the row path: rows of log K of a team's chosen tokens with all of its sample, and their normalisers, by
// whichever blocks have time.
//
// A product is so many parts: tiles of 128 tokens with the chosen ones, then the normalisers of eight rows each. A team
// has one product at a time on offer, in global memory. A block takes a part by counting down what is left, does it,
// and counts it as done; the next product is on offer once all parts that were taken are done. So a part is done by a
// block that runs, and nobody waits for one that may not have started: a launch needs no more blocks at a time than
// take a team's steps. The parts that wait, for the tiles, are taken after these.
#pragma once

#include "cuda/greedy/exchange.cuh"
#include "cuda/tile/product.cuh"
#include "cuda/tile/rows.cuh"

namespace mi_pruner::cuda {

constexpr int kHeldParts = 16; // of a row's normaliser, in a lane's registers: all, up to 32,768 tokens

template <typename T, typename Tile> class RowProducts {
public:
  __device__ RowProducts(const Tokens& visual, const float* norms, int64_t dim, const Densities& densities,
                         const Selection& selection, const RowMemory& memory, RowShared<Tile>& shared)
      : visual_(visual), norms_(norms), dim_(dim), densities_(densities), selection_(selection), memory_(memory),
        shared_(shared) {}

  static constexpr int kNormaliserParts = kProductRows / kRowWarps;
  static __device__ int tiles_of(int64_t count) { return static_cast<int>((count + Tile::kRows - 1) / Tile::kRows); }
  static __device__ int parts_of(int64_t count) { return tiles_of(count) + kNormaliserParts; }

  // By the first thread: whether a team has parts on offer.
  __device__ bool offers(unsigned team) const { return static_cast<int>(load_acquire(memory_.left(team))) > 0; }

  // By a block: does one of the team's parts; false: there is none.
  __device__ bool help(unsigned team) {
    const Order* const order = memory_.orders + team;
    if (threadIdx.x == 0) {
      int left = 0;
      if (offers(team)) left = static_cast<int>(add_acquire_release(memory_.left(team), ~0u));
      shared_.found = left > 0 ? __ldcg(&order->parts) - left : -1;
    }
    __syncthreads();
    const int part = shared_.found;
    if (part >= 0 && threadIdx.x < kProductRows) shared_.chosen[threadIdx.x] = __ldcg(order->chosen + threadIdx.x);
    __syncthreads();
    if (part < 0) return false;
    const int64_t sample = __ldcg(&order->sample), places = team * memory_.cached() + __ldcg(&order->base);
    const Span span = span_of(visual_.layout, sample);
    LogSum* const parts = memory_.parts + team * kProductRows * memory_.tiles;
    const int tiles = tiles_of(span.count);
    if (part < tiles)
      multiply(span, sample, part, places, parts);
    else
      normalise(span, sample, team, (part - tiles) * kRowWarps, places, parts);
    __syncthreads(); // what the block's threads wrote is released with the count: release is cumulative
    if (threadIdx.x == 0) add_release(memory_.done(team), 1u);
    return true;
  }

  // Until so many parts are done, or products have been on offer; for all threads, what they left is then seen.
  __device__ void wait(unsigned team, int parts) const { wait_for(memory_.done(team), static_cast<unsigned>(parts)); }
  __device__ void wait_for_offer(unsigned team, unsigned number) const { wait_for(memory_.offers(team), number); }

private:
  static __device__ void wait_for(const unsigned* counter, unsigned value) {
    if (threadIdx.x == 0)
      while (load_acquire(counter) < value)
        wait_a_moment();
    __syncthreads();
  }

  // The chosen tokens' rows in a tile, and its parts of their normalisers.
  __device__ void multiply(const Span& span, int64_t sample, int number, int64_t places, LogSum* parts) {
    const int64_t first = int64_t{number} * Tile::kRows;
    const Rows<T> features = rows_of<T>(visual_, sample, span);
    const auto row_token = [&](int r) { return first + r < span.count ? first + r : -1; };
    const auto column_token = [&](int c) { return int64_t{shared_.chosen[c]}; };
    for (int k = threadIdx.x; k < Tile::kTokens; k += kTileThreads) {
      const int64_t token = k < Tile::kRows ? row_token(k) : column_token(k - Tile::kRows);
      shared_.tile.set_norm(k, token < 0 ? 0.0f : norms_[span.begin + token]);
    }
    TileSource<T, Tile> source(features, row_token, features, column_token, 0, shared_.tile);
    multiply_tile<false>(source, dim_, Tile::kRows, kProductRows, 0, shared_.tile);
    store_weights(visual_.prior, span.begin, first, span.count, 0, Tile::kRows, shared_.tile);
    const Sums<kProductRows> sums = shared_.tile.sums();
    take_cosines(
        0, Tile::kRows, Tile::kRows, [&](int row, int quad) { return four_of(sums.four(row, quad)); },
        [&](float cosine) { return log_kernel(cosine, selection_.kappa); }, sums, shared_.tile);
    __syncthreads();
    // A chosen token's row is a column here: 64 tokens of it at a time, as they are in the rows of the Gram matrix.
    for_each_row(kProductRows * Tile::kRows / kTileColumns, [&](int k) {
      const int column = k % kProductRows, side = k / kProductRows * kTileColumns;
      LaneRow x;
#pragma unroll
      for (int q = 0; q < kLaneQuads; ++q)
        x[q] = sums.four_down(side + 4 * lane_quad(q), column);
      const LogSum part = part_of(x, shared_.tile.weight + side);
      if (shared_.chosen[column] < 0 || first + side >= span.count) return;
      store_row(x, memory_.rows + (places + column) * memory_.row_stride, first + side, span.count);
      if (threadIdx.x % kRowLanes == 0) parts[column * memory_.tiles + (first + side) / kTileColumns] = part;
    });
  }

  // A row's by each warp, once all of its tiles are there.
  __device__ void normalise(const Span& span, int64_t sample, unsigned team, int first, int64_t places,
                            const LogSum* parts) {
    wait(team, tiles_of(span.count));
    const int row = first + static_cast<int>(threadIdx.x) / 32;
    if (shared_.chosen[row] < 0) return;
    const int64_t tiles = (span.count + kTileColumns - 1) / kTileColumns;
    const float log_z = log_of_parts<kHeldParts>(parts + row * memory_.tiles, tiles);
    if (threadIdx.x % 32 == 0) memory_.log_z[places + row] = log_z - densities_.log_total[sample];
  }

  const Tokens& visual_;
  const float* const norms_;
  const int64_t dim_;
  const Densities& densities_;
  const Selection& selection_;
  const RowMemory& memory_;
  RowShared<Tile>& shared_;
};

} // namespace mi_pruner::cuda

// Norms and cosines in one pass: visual tokens against the text, and against one another.
//
// Mapping: one block a tile (tile/); tiles of the same visual tokens lie next to one another and share them in L2.
// A tile of text columns leaves the cosines (a visual token's row contiguous), and its shares of the bandwidth rule:
// the number, mean and sum of squared deviations of the valid pairs of each 32 x 32. A tile of visual columns leaves
// log K, and each row's share of its normaliser over the columns; those above the diagonal are not computed, but left
// by the tile across it, turned. The first tile of some rows leaves their log weights and, for each 32, their share of
// the sum of the visual prior.
//
// Tiles of 128 rows read the least from L2. Where there are few tiles, they have 64 rows, and, of a long D, two blocks,
// a cluster, share each: a half of the sum over D, and then half of the rows. Every number that is left belongs to two
// tokens, to 32 rows, to 32 x 32 pairs, or to a row and 64 columns: it has the same bits from all of them.
//
// Cost: 2 D flops a cosine, of half of the matrix. Bytes: `visual` once (M <= 64: one column of tiles; what the gram
// reads again comes from L2), the text once a row of tiles, the cosines once. Bound by memory for the scores, by shared
// memory and L2 for the gram.
//
// Determinism: nothing is added by atomics; parts are combined in order by the kernels that follow.
#pragma once

#include "cuda/tile/product.cuh"
#include "cuda/tile/rows.cuh"

namespace mi_pruner::cuda {

// A block's tile: kRows rows of a sample, and 64 text tokens or 64 visual ones. Numbers of tiles, as what is held
// beside the product is short of registers.
template <int kRows> struct SimilarityTile {
  unsigned sample, row_tile, tile, text_tiles;

  // Number `at` of all samples' tiles, `each` of them a sample's.
  __device__ SimilarityTile(const Similarities& found, unsigned at, unsigned each)
      : sample(at / each), row_tile(0), tile(at % each), text_tiles(static_cast<unsigned>(found.text_tiles)) {
    if (found.visual_tiles == 0) {
      row_tile = tile / text_tiles;
      tile %= text_tiles;
      return;
    }
    for (;; ++row_tile) {
      const unsigned across = static_cast<unsigned>(tiles_across(text_tiles, found.visual_tiles, row_tile, kRows));
      if (tile < across) return;
      tile -= across;
    }
  }

  __device__ bool text() const { return tile < text_tiles; }
  __device__ int64_t first_row() const { return int64_t{row_tile} * kRows; }
  __device__ unsigned column_tile() const { return text() ? tile : tile - text_tiles; }
  __device__ int64_t first_column() const { return int64_t{column_tile()} * kTileColumns; }
  __device__ bool below_diagonal() const { return first_column() + kTileColumns <= first_row(); }
};

// Number, mean and squared deviations of the valid pairs of 32 x 32, by a warp, a column a lane.
template <int kRows>
__device__ void store_moments(TileShared<kRows>& shared, int first_row, int first_column, float* moments) {
  const int lane = threadIdx.x % 32, column = first_column + lane;
  const auto valid = [&](int token) { return shared.weight[token] > -MI_PRUNER_INFINITY; };
  const unsigned rows = __ballot_sync(kFullWarp, valid(first_row + lane)),
                 columns = __ballot_sync(kFullWarp, valid(kRows + column));
  const auto sum = [&](const auto& f) {
    float sum = 0;
#pragma unroll 4
    for (int r = 0; r < kPatch; ++r)
      if (rows >> r & 1) sum += f(shared.row(first_row + r)[column]);
    return warp_reduce<Sum>(columns >> lane & 1 ? sum : 0.0f);
  };
  const float number = static_cast<float>(__popc(rows) * __popc(columns)),
              mean = sum([](float cosine) { return cosine; }) / fmaxf(number, 1),
              squares = sum([&](float cosine) { return (cosine - mean) * (cosine - mean); });
  if (lane > 0) return;
  moments[0] = number;
  moments[1] = mean;
  moments[2] = squares;
}

template <int kRows> struct SimilarityShared {
  TileShared<kRows> tile;
  SimilarityTile<kRows> at; // of the block, as the spans: there are no registers for them beside the product
  Span rows, columns;
};
static_assert(sizeof(SimilarityShared<kTileRows>) <= kMostShared);
static_assert(sizeof(SimilarityShared<kSmallTileRows>) <= kMostShared);

// What follows a product: by one block, or by the two of a cluster, each for half of the rows.
template <int kRows, int kBlocks> class TileEnd {
public:
  __device__ TileEnd(const Similarities& found, SimilarityShared<kRows>& shared)
      : found_(found), shared_(shared), tile_(shared.tile), at_(shared.at), rank_(blockIdx.x % kBlocks),
        first_(rank_ * (kRows / kBlocks)), end_(first_ + kRows / kBlocks) {}

  // The log weights of the tile's rows, and their share of the sum of the visual prior.
  __device__ void store_rows() const {
    const Span& rows = shared_.rows;
    if (rank_ > 0 || threadIdx.x >= kRows || at_.first_row() + threadIdx.x / kPatch * kPatch >= rows.count)
      return; // a whole warp
    const int64_t row = at_.first_row() + threadIdx.x;
    const float weight = tile_.weight[threadIdx.x];
    if (row < rows.count) found_.visual_log_weight[rows.begin + row] = weight;
    const float top = warp_reduce<Largest>(weight), total = warp_reduce<Sum>(expf(weight - shift_of(top)));
    const unsigned valid = __popc(__ballot_sync(kFullWarp, weight > -MI_PRUNER_INFINITY));
    if (threadIdx.x % 32 == 0)
      found_.prior_parts[at_.sample * found_.row_patches + row / kPatch] = {{top, total}, valid};
  }

  __device__ void store_text() const {
    const Span &rows = shared_.rows, &columns = shared_.columns;
    if (rank_ == 0 && at_.first_row() == 0 && threadIdx.x < kTileColumns &&
        at_.first_column() + threadIdx.x < columns.count) {
      const int64_t column = at_.first_column() + threadIdx.x;
      found_.text_log_weight[columns.begin + column] = tile_.weight[kRows + threadIdx.x];
    }
    cosines([](float cosine) { return cosine; });
    for_each_row(first_, end_, [&](int r) {
      const int64_t row = at_.first_row() + r;
      if (row >= rows.count) return;
      LaneRow x;
      load_row(tile_.row(r), x);
      store_row(x, found_.cosines + (rows.begin + row) * found_.cosine_stride, at_.first_column(), columns.count);
    });
    constexpr int kDown = kRows / kBlocks / kPatch;
    const int warp = threadIdx.x / 32, row = first_ + warp % kDown * kPatch, column = warp / kDown * kPatch;
    if (column >= kTileColumns) return;
    const int64_t first_row = at_.first_row() + row, first_column = at_.first_column() + column;
    if (first_row >= rows.count || first_column >= columns.count) return;
    const int64_t patch = (at_.sample * found_.row_patches + first_row / kPatch) * found_.text_patches;
    store_moments(tile_, row, column, found_.moments + 3 * (patch + first_column / kPatch));
  }

  // log K and the parts of the normalisers, of the tile and, below the diagonal, of the tile turned: its 64 columns are
  // then rows 0 to 63, with its first 64 rows as columns, and, of 128 rows, rows 64 to 127, with the others. So a part
  // has the bits that it would have in a tile above the diagonal.
  __device__ void store_gram(float kappa) const {
    const Span& rows = shared_.rows;
    cosines([&](float cosine) { return log_kernel(cosine, kappa); });
#pragma unroll 1
    for (int turned = 0; turned <= (at_.below_diagonal() ? 1 : 0); ++turned)
      for_each_row(first_, end_, [&](int r) {
        const int half = r / kTileColumns * kTileColumns;
        const int64_t row = turned ? at_.first_column() + (r - half) : at_.first_row() + r,
                      first = turned ? at_.first_row() + half : at_.first_column();
        LaneRow x;
#pragma unroll
        for (int k = 0; k < kLaneColumns; ++k)
          x[k] = turned ? element(half + lane_column(k), r - half) : tile_.row(r)[lane_column(k)];
        const LogSum part = part_of(x, tile_.weight + (turned ? half : kRows));
        if (row >= rows.count || first >= rows.count) return;
        store_row(x, found_.gram + (rows.begin + row) * found_.gram_stride, first, rows.count);
        if (threadIdx.x % kRowLanes == 0)
          found_.parts[(rows.begin + row) * found_.visual_tiles + first / kTileColumns] = part;
      });
    if (kBlocks > 1 && at_.below_diagonal()) cluster_barrier(); // what the other one reads is there until then
  }

private:
  // map(cosine) in the place of the sums: for all threads, of all blocks.
  template <typename Map> __device__ void cosines(const Map& map) const {
    const auto sum = [&](int row, int column) {
      const float* const own = tile_.row(row) + column;
      return kBlocks > 1 ? *own + load_from(own, 1 - rank_) : *own;
    };
    take_cosines(first_, end_, sum, map, tile_);
    if (kBlocks > 1)
      cluster_barrier();
    else
      __syncthreads();
  }

  // Of the tile, wherever it is.
  __device__ float element(int row, int column) const {
    const float* const place = tile_.row(row) + column;
    return kBlocks > 1 ? load_from(place, row / (kRows / kBlocks)) : *place;
  }

  const Similarities& found_;
  SimilarityShared<kRows>& shared_;
  TileShared<kRows>& tile_;
  const SimilarityTile<kRows>& at_;
  const int rank_, first_, end_;
};

// What the blocks of the normalisers count and wait for, of a text token.
__device__ inline void prepare_normalisers(const Similarities& found, int64_t sample, const Span& columns,
                                           int64_t column) {
  uint64_t* const terms = found.terms + first_term(sample, columns.begin);
  terms[kSampleTerms + column] = kNotThere;
  if (column == 0) terms[0] = terms[1] = kNotThere;
  if (column % kTextGroup == 0) found.arrivals[sample * found.text_groups + column / kTextGroup] = 0;
}

// `tiles`: of a sample. kBlocks: of a cluster that shares a tile.
template <typename T, int kRows, int kBlocks>
__global__ void __launch_bounds__(kTileThreads, 2)
    similarity_kernel(const Tokens visual, const Tokens text, const int64_t dim, const float kappa,
                      const Similarities found, const unsigned tiles) {
  MI_PRUNER_SHARED(SimilarityShared<kRows>, shared);
  if (kBlocks > 1 && !kHasClusters) return; // never launched so: similarity.cu asks what was compiled
  {
    const SimilarityTile<kRows> at(found, blockIdx.x / kBlocks, tiles);
    const auto used = [&](const Span& columns) {
      const int64_t left = columns.count - at.first_column();
      return left < 0 ? 0 : left < kTileColumns ? static_cast<int>(left) : kTileColumns;
    };
    const Span rows = span_of(visual.layout, at.sample);
    const Span columns = at.text() ? span_of(text.layout, at.sample) : rows;
    // A sample without text still needs the norms of its visual tokens: the first tile of a row always runs.
    if (at.first_row() >= rows.count || (used(columns) == 0 && at.tile > 0)) return;
    if (threadIdx.x == 0) {
      shared.at = at;
      shared.rows = rows;
      shared.columns = columns;
    }
    const unsigned rank = blockIdx.x % kBlocks;
    if (rank == 0 && at.text() && at.first_row() == 0 && static_cast<int>(threadIdx.x) < used(columns))
      prepare_normalisers(found, at.sample, columns, at.first_column() + threadIdx.x);
    const Rows<T> row_features = rows_of<T>(visual, at.sample, rows);
    TileSource<T, kRows> source(
        row_features, [&](int r) { return at.first_row() + r < rows.count ? at.first_row() + r : -1; },
        at.text() ? rows_of<T>(text, at.sample, columns) : row_features,
        [&](int c) { return at.first_column() + c < columns.count ? at.first_column() + c : -1; },
        rank == 0 ? 0 : first_half(TileSource<T, kRows>::stages(dim)), shared.tile);
    if constexpr (kBlocks > 1)
      multiply_half(source, dim, used(columns), rank, shared.tile);
    else
      multiply_tile(source, dim, used(columns), shared.tile);
  }
  const SimilarityTile<kRows>& at = shared.at;
  const Span &rows = shared.rows, &columns = shared.columns;
  store_weights(visual.prior, rows.begin, at.first_row(), rows.count, 0, kRows, shared.tile);
  store_weights(at.text() ? text.prior : visual.prior, columns.begin, at.first_column(), columns.count, kRows,
                kTileColumns, shared.tile);
  __syncthreads();
  const TileEnd<kRows, kBlocks> end(found, shared);
  if (at.tile == 0) end.store_rows();
  if (at.text())
    end.store_text();
  else
    end.store_gram(kappa);
}

} // namespace mi_pruner::cuda

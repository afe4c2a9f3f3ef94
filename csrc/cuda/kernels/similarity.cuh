// Norms and cosines in one pass: visual tokens against the text, and against one another.
//
// Mapping: one block, or one cluster, a tile (tile/); tiles of the same visual tokens lie next to one another and share
// them in L2. A tile of text columns leaves the cosines (a visual token's row contiguous), and its shares of the
// bandwidth rule: the number, mean and sum of squared deviations of the valid pairs of each 32 x 32. A tile of visual
// columns leaves log K, and each row's shares of its normaliser over the columns; those above the diagonal are not
// computed, but left by the tile across it, turned. The first tile of some rows leaves their log weights and, for each
// 32, their share of the sum of the visual prior. A sample's first tile leaves where it lies in what is packed.
//
// Where there are few tiles, and D is long, a cluster of eight blocks shares each: every one sums a share of D, and
// then sees to an eighth of the rows. Every number that is left belongs to two tokens, to 32 rows, to 32 x 32 pairs, or
// to a row and 64 columns: it has the same bits from all of them.
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

// A block's tile: 128 rows of a sample, and text tokens or visual ones. Numbers of tiles, as what is held beside the
// product is short of registers.
template <typename Tile> struct SimilarityTile {
  unsigned sample, row_tile, tile, text_tiles;

  // Number `at` of all samples' tiles, `each` of them a sample's.
  __device__ SimilarityTile(const Similarities& found, unsigned at, unsigned each)
      : sample(at / each), row_tile(0), tile(at % each),
        text_tiles(static_cast<unsigned>(tiles_of(found.text_tiles, Tile::kColumns))) {
    if (found.visual_tiles == 0) {
      row_tile = tile / text_tiles;
      tile %= text_tiles;
      return;
    }
    const int64_t visual_tiles = tiles_of(found.visual_tiles, Tile::kColumns);
    for (;; ++row_tile) {
      const unsigned across = static_cast<unsigned>(tiles_across(text_tiles, visual_tiles, row_tile, Tile::kColumns));
      if (tile < across) return;
      tile -= across;
    }
  }

  __device__ bool text() const { return tile < text_tiles; }
  __device__ int64_t first_row() const { return int64_t{row_tile} * Tile::kRows; }
  __device__ unsigned column_tile() const { return text() ? tile : tile - text_tiles; }
  __device__ int64_t first_column() const { return int64_t{column_tile()} * Tile::kColumns; }
  __device__ bool below_diagonal() const { return first_column() + Tile::kColumns <= first_row(); }
  // The first column's place among the tile's tokens: that of the same token as a row, if it is one.
  __device__ int columns_at() const {
    return text() || below_diagonal() ? Tile::kRows : static_cast<int>(first_column() - first_row());
  }
};

// Number, mean and squared deviations of the valid pairs of 32 x 32, by a warp, a column a lane: element(row, column).
template <typename Tile, typename Element>
__device__ void store_moments(const TileShared<Tile>& shared, const Element& element, int first_row, int first_column,
                              float* moments) {
  const int lane = threadIdx.x % 32, column = first_column + lane;
  const auto valid = [&](int token) { return shared.weight[token] > -MI_PRUNER_INFINITY; };
  const unsigned rows = __ballot_sync(kFullWarp, valid(first_row + lane)),
                 columns = __ballot_sync(kFullWarp, valid(Tile::kRows + column));
  float cosines[kPatch]; // read side by side, maybe from other blocks
#pragma unroll
  for (int r = 0; r < kPatch; ++r)
    cosines[r] = element(first_row + r, column);
  const auto sum = [&](const auto& f) {
    float sum = 0;
#pragma unroll
    for (int r = 0; r < kPatch; ++r)
      if (rows >> r & 1) sum += f(cosines[r]);
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

template <typename Tile> struct SimilarityShared {
  TileShared<Tile> tile;
  SimilarityTile<Tile> at; // of the block, as the spans: there are no registers for them beside the product
  Span rows, columns;
  Ends ends[2]; // of the sample's visual tokens and of its text, where they are packed
};
static_assert(sizeof(SimilarityShared<BlockTile>) <= kMostShared);

// What follows a product: by one block, or by those of a cluster, each for some of the rows.
template <typename Tile> class TileEnd {
public:
  __device__ TileEnd(const Similarities& found, SimilarityShared<Tile>& shared)
      : found_(found), shared_(shared), tile_(shared.tile), at_(shared.at), rank_(blockIdx.x % Tile::kBlocks) {}

  // The log weights of the tile's rows, and their share of the sum of the visual prior.
  __device__ void store_rows() const {
    const Span& rows = shared_.rows;
    if (rank_ > 0 || threadIdx.x >= Tile::kRows || at_.first_row() + threadIdx.x / kPatch * kPatch >= rows.count)
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
    if (rank_ == 0 && at_.first_row() == 0 && threadIdx.x < Tile::kColumns &&
        at_.first_column() + threadIdx.x < columns.count) {
      const int64_t column = at_.first_column() + threadIdx.x;
      found_.text_log_weight[columns.begin + column] = tile_.weight[Tile::kRows + threadIdx.x];
    }
    cosines([](float cosine) { return cosine; });
    for_each_part(false, [&](int r, int first) {
      const int64_t row = at_.first_row() + r;
      if (row >= rows.count) return;
      LaneRow x;
      load_row(r, first, x);
      store_row(x, found_.cosines + (rows.begin + row) * found_.cosine_stride, at_.first_column() + first,
                columns.count);
    });
    // The patches, shared among the warps of all blocks.
    constexpr int kDown = Tile::kRows / kPatch, kPatches = kDown * Tile::kColumns / kPatch;
#pragma unroll 1
    for (int patch = rank_ + static_cast<int>(threadIdx.x) / 32 * Tile::kBlocks; patch < kPatches;
         patch += kTileThreads / 32 * Tile::kBlocks) {
      const int row = patch % kDown * kPatch, column = patch / kDown * kPatch;
      const int64_t first_row = at_.first_row() + row, first_column = at_.first_column() + column;
      if (first_row >= rows.count || first_column >= columns.count) continue;
      const int64_t place = (at_.sample * found_.row_patches + first_row / kPatch) * found_.text_patches;
      store_moments(
          tile_, [&](int r, int c) { return element(r, c); }, row, column,
          found_.moments + 3 * (place + first_column / kPatch));
    }
  }

  // log K and the parts of the normalisers, of the tile and, below the diagonal, of the tile turned: its columns are
  // then rows, of which each 64 rows are the columns of a part. So a part has the bits that it would have in a tile
  // above the diagonal.
  __device__ void store_gram(float kappa) const {
    const Span& rows = shared_.rows;
    cosines([&](float cosine) { return log_kernel(cosine, kappa); });
#pragma unroll 1
    for (int turned = 0; turned <= (at_.below_diagonal() ? 1 : 0); ++turned)
      for_each_part(turned, [&](int r, int part) {
        const int64_t row = (turned ? at_.first_column() : at_.first_row()) + r,
                      first = (turned ? at_.first_row() : at_.first_column()) + part;
        LaneRow x;
        if (turned)
#pragma unroll
          for (int k = 0; k < kLaneQuads; ++k) {
            const int from = part + 4 * lane_quad(k);
            x[k] = {element(from, r), element(from + 1, r), element(from + 2, r), element(from + 3, r)};
          }
        else
          load_row(r, part, x);
        const LogSum sum = part_of(x, tile_.weight + (turned ? 0 : Tile::kRows) + part);
        if (row >= rows.count || first >= rows.count) return;
        store_row(x, found_.gram + (rows.begin + row) * found_.gram_stride, first, rows.count);
        if (threadIdx.x % kRowLanes == 0)
          found_.parts[(rows.begin + row) * found_.visual_tiles + first / kTileColumns] = sum;
      });
  }

private:
  static constexpr int kOwnRows = Tile::kRows / Tile::kBlocks, kOwnColumns = Tile::kColumns / Tile::kBlocks;

  // f(row, first column) for the block's rows (or, turned, columns) and each 64 columns (rows) of them.
  template <typename F> __device__ void for_each_part(bool turned, const F& f) const {
    constexpr int kNumber = Tile::kRows * Tile::kColumns / Tile::kBlocks / kTileColumns;
    const int own = turned ? kOwnColumns : kOwnRows;
    for_each_row(kNumber, [&](int k) { f(rank_ * own + k % own, k / own * kTileColumns); });
  }

  __device__ void load_row(int row, int first, LaneRow& x) const {
#pragma unroll
    for (int k = 0; k < kLaneQuads; ++k)
      x[k] = four_of(tile_.four(row, first / 4 + lane_quad(k)));
  }

  // map(cosine) in the place of the sums: for all threads, of all blocks.
  template <typename Map> __device__ void cosines(const Map& map) const {
    const auto sum = [&](int row, int quad) {
      const float* const own = tile_.four(row, quad);
      if constexpr (Tile::kBlocks == 1) return four_of(own);
      float4 share[Tile::kBlocks], sum{};
#pragma unroll
      for (int block = 0; block < Tile::kBlocks; ++block)
        share[block] = load_from(reinterpret_cast<const float4*>(own), block);
#pragma unroll
      for (int block = 0; block < Tile::kBlocks; ++block)
        sum = each(sum, share[block], [](float a, float b) { return a + b; });
      return sum;
    };
    take_cosines(rank_ * kOwnRows, kOwnRows, sum, map, tile_);
    if constexpr (Tile::kBlocks > 1)
      cluster_barrier();
    else
      __syncthreads();
  }

  // Of the tile, wherever it is.
  __device__ float element(int row, int column) const {
    const float* const place = tile_.sum(row, column);
    if constexpr (Tile::kBlocks == 1) return *place;
    return load_from(place, row / kOwnRows);
  }

  const Similarities& found_;
  SimilarityShared<Tile>& shared_;
  TileShared<Tile>& tile_;
  const SimilarityTile<Tile>& at_;
  const int rank_;
};

// What the blocks of the normalisers count and wait for, of a text token.
__device__ inline void prepare_normalisers(const Similarities& found, int64_t sample, const Span& columns,
                                           int64_t column) {
  uint64_t* const terms = found.terms + first_term(sample, columns.begin);
  terms[kSampleTerms + column] = kNotThere;
  if (column == 0) terms[0] = terms[1] = kNotThere;
  if (column % kTextGroup == 0) found.arrivals[sample * found.text_groups + column / kTextGroup] = 0;
}

// Where a packed sample's visual tokens and its text lie, to all threads. The first of its tiles leaves both, and where
// its slots are, for the launches that follow.
template <typename Tile>
__device__ void find_all_ends(const Layout& visual, const Layout& text, const Layout& slots,
                              const SimilarityTile<Tile>& at, Ends (&ends)[2]) {
  const int warp = threadIdx.x / 32;
  const bool first = blockIdx.x % Tile::kBlocks == 0 && at.row_tile == 0 && at.tile == 0;
  const Layout layout = warp == 0 ? visual : warp == 1 ? text : slots;
  if (warp < (first ? 3 : 2) && layout.packed()) {
    const Ends own = find_ends(layout, at.sample);
    if (threadIdx.x % 32 == 0) {
      if (warp < 2) ends[warp] = own;
      if (first && at.sample == 0) layout.cu[0] = own.begin;
      if (first) layout.cu[at.sample + 1] = own.end;
    }
  }
  __syncthreads();
}

// Whether the code has instructions for the tile: elsewhere the kernel has no body, and says so by its launch bounds.
template <typename Tile> constexpr bool runs_here() {
  return (Tile::kBlocks == 1 || kHasClusters) && (!Tile::kGroups || kHasGroups);
}

// `tiles`: of a sample.
template <typename T, typename Tile>
__device__ void compute_tile(const Tokens& visual, const Tokens& text, const Layout& slots, int64_t dim, float kappa,
                             const Similarities& found, unsigned tiles, SimilarityShared<Tile>& shared) {
  {
    const SimilarityTile<Tile> at(found, blockIdx.x / Tile::kBlocks, tiles);
    const int rank = blockIdx.x % Tile::kBlocks;
    const auto used = [&](const Span& columns) {
      const int64_t left = columns.count - at.first_column();
      return left < 0 ? 0 : left < Tile::kColumns ? static_cast<int>(left) : Tile::kColumns;
    };
    if (visual.layout.packed()) find_all_ends(visual.layout, text.layout, slots, at, shared.ends);
    const Span rows = span_of(visual.layout, at.sample, shared.ends[0]),
               columns = at.text() ? span_of(text.layout, at.sample, shared.ends[1]) : rows;
    // A sample without text still needs the norms of its visual tokens: the first tile of a row always runs.
    if (at.first_row() >= rows.count || (used(columns) == 0 && at.tile > 0)) return;
    if (threadIdx.x == 0) {
      shared.at = at;
      shared.rows = rows;
      shared.columns = columns;
    }
    if (rank == 0 && at.text() && at.first_row() == 0 && static_cast<int>(threadIdx.x) < used(columns))
      prepare_normalisers(found, at.sample, columns, at.first_column() + threadIdx.x);
    const Rows<T> row_features = rows_of<T>(visual, at.sample, rows);
    TileSource<T, Tile> source(
        row_features, [&](int r) { return at.first_row() + r < rows.count ? at.first_row() + r : -1; },
        at.text() ? rows_of<T>(text, at.sample, columns) : row_features,
        [&](int c) { return at.first_column() + c < columns.count ? at.first_column() + c : -1; },
        rank * share_of(stages_of<T>(dim)), at.columns_at(), shared.tile);
    multiply_tile(source, dim, used(columns), rank, shared.tile);
  }
  const SimilarityTile<Tile>& at = shared.at;
  const Span &rows = shared.rows, &columns = shared.columns;
  store_weights(visual.prior, rows.begin, at.first_row(), rows.count, 0, Tile::kRows, shared.tile);
  store_weights(at.text() ? text.prior : visual.prior, columns.begin, at.first_column(), columns.count, Tile::kRows,
                Tile::kColumns, shared.tile);
  __syncthreads();
  const TileEnd<Tile> end(found, shared);
  if (at.tile == 0) end.store_rows(); // where the text has a launch of its own, by both: the same values
  if (at.text())
    end.store_text();
  else
    end.store_gram(kappa);
  if (Tile::kBlocks > 1) cluster_end(); // what the others read is there until then
}

template <typename T, typename Tile>
__global__ void __launch_bounds__(runs_here<Tile>() ? kTileThreads : 32, Tile::kResident)
    similarity_kernel(const Tokens visual, const Tokens text, const Layout slots, const int64_t dim, const float kappa,
                      const Similarities found, const unsigned tiles) {
  MI_PRUNER_SHARED(SimilarityShared<Tile>, shared);
  if constexpr (runs_here<Tile>()) compute_tile<T>(visual, text, slots, dim, kappa, found, tiles, shared);
}

} // namespace mi_pruner::cuda

// Norms and cosines in one pass: visual tokens against the text, and against one another.
//
// Mapping: one block, or one cluster, a tile (tile/); tiles of the same visual tokens lie next to one another and share
// them in L2. A tile of text columns leaves the cosines (a visual token's row contiguous), and its shares of the
// bandwidth rule: the number, mean and sum of squared deviations of the valid pairs of each 16 x 32. A tile of visual
// columns leaves the products; those above the diagonal are not computed, but left by the tile across it, turned. The
// first tile of some rows leaves their log weights, their norms where a later launch asks for these, and, for each 16,
// their share of the sum of the visual prior. A sample's first tile leaves where it lies in what is packed. Of halves,
// where there are groups of warps, the visual columns are another kernel's (gram.cuh).
//
// Where there are few tiles, and D is long, a cluster of eight blocks shares each: every one sums a share of D, and
// then sees to an eighth of the rows. Every number that is left belongs to two tokens, to 16 rows, to 16 x 32 pairs, or
// to a row and 64 columns: it has the same bits from all of them.
//
// Cost: 2 D flops a cosine, of half of the matrix. Bytes: `visual` once (M <= 64: one column of tiles; what the gram
// reads again comes from L2), the text once a row of tiles, the cosines once. Bound by memory for the scores, by shared
// memory and L2 for the gram.
//
// Determinism: nothing is added by atomics; parts are combined in order by the kernels that follow.
#pragma once

#include "cuda/tile/end.cuh"

namespace mi_pruner::cuda {

// A block's tile: 128 rows of a sample, and 64 text tokens or visual ones.
template <typename Tile> struct SimilarityTile {
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
      const unsigned across = static_cast<unsigned>(tiles_across(text_tiles, found.visual_tiles, row_tile));
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

// What a block knows, beside its tile: there are no registers for it beside the product.
template <typename Tile> struct SimilarityShared {
  TileShared<Tile> tile;
  TileOf at;
  int64_t first_column;
  int columns_at;
  bool first, text; // of its rows; columns
  Ends ends[2];     // of the sample's visual tokens and of its text, where they are packed
};
static_assert(sizeof(SimilarityShared<BlockTile>) <= kMostShared);

// What the blocks of the normalisers count and wait for, of a text token.
__device__ inline void prepare_normalisers(const Similarities& found, int64_t sample, const Span& columns,
                                           int64_t column) {
  uint64_t* const terms = found.terms + first_term(sample, columns.begin);
  terms[kSampleTerms + column] = kNotThere;
  if (column == 0) terms[0] = terms[1] = kNotThere;
  if (column % kTextGroup == 0) found.arrivals[sample * found.text_groups + column / kTextGroup] = 0;
}

// Where a packed sample's visual tokens and its text lie, to all threads. The `first` block of a sample leaves both,
// and where its slots are, for the launches that follow.
__device__ inline void find_all_ends(const Layout& visual, const Layout& text, const Layout& slots, unsigned sample,
                                     bool first, Ends (&ends)[2]) {
  const int warp = threadIdx.x / 32;
  const Layout layout = warp == 0 ? visual : warp == 1 ? text : slots;
  if (warp < (first ? 3 : 2) && layout.packed()) {
    const Ends own = find_ends(layout, sample);
    if (threadIdx.x % 32 == 0) {
      if (warp < 2) ends[warp] = own;
      if (first && sample == 0) layout.cu[0] = own.begin;
      if (first) layout.cu[sample + 1] = own.end;
    }
  }
  __syncthreads();
}

// `tiles`: of a sample.
template <typename T, typename Tile>
__device__ void compute_tile(const Tokens& visual, const Tokens& text, const Layout& slots, int64_t dim,
                             const Similarities& found, unsigned tiles, SimilarityShared<Tile>& shared) {
  TileShared<Tile>& tile = shared.tile;
  {
    const SimilarityTile<Tile> at(found, blockIdx.x / Tile::kBlocks, tiles);
    const int rank = rank_of_block<Tile>();
    if (visual.layout.packed())
      find_all_ends(visual.layout, text.layout, slots, at.sample, rank == 0 && at.row_tile == 0 && at.tile == 0,
                    shared.ends);
    const Span rows = span_of(visual.layout, at.sample, shared.ends[0]),
               columns = at.text() ? span_of(text.layout, at.sample, shared.ends[1]) : rows;
    const int64_t left = columns.count - at.first_column();
    const int used = left < 0 ? 0 : left < Tile::kColumns ? static_cast<int>(left) : Tile::kColumns;
    // A sample without text still needs the norms of its visual tokens: the first tile of a row always runs.
    if (at.first_row() >= rows.count || (used == 0 && at.tile > 0)) return;
    if (threadIdx.x == 0) {
      shared.at = {at.sample, at.first_row(), rows, columns};
      shared.first_column = at.first_column();
      shared.columns_at = at.columns_at();
      shared.first = at.tile == 0;
      shared.text = at.text();
    }
    if (rank == 0 && at.text() && at.first_row() == 0 && static_cast<int>(threadIdx.x) < used)
      prepare_normalisers(found, at.sample, columns, at.first_column() + threadIdx.x);
    const Rows<T> row_features = rows_of<T>(visual, at.sample, rows);
    const int64_t apart = at.columns_at() == Tile::kRows ? columns.count : 0; // not the rows again
    TileSource<T, Tile> source(
        row_features, [&](int r) { return at.first_row() + r < rows.count ? at.first_row() + r : -1; },
        at.text() ? rows_of<T>(text, at.sample, columns) : row_features,
        [&](int c) { return at.first_column() + c < apart ? at.first_column() + c : -1; },
        rank * share_of(stages_of<T>(dim)), tile);
    multiply_tile<false>(source, dim, at.columns_at(), used, rank, tile);
  }
  take_norms(0, Tile::kTokens, tile);
  __syncthreads();
  const Span &rows = shared.at.rows, &columns = shared.at.text;
  store_weights(visual.prior, rows.begin, shared.at.first_row, rows.count, 0, Tile::kRows, tile);
  store_weights(shared.text ? text.prior : visual.prior, columns.begin, shared.first_column, columns.count, Tile::kRows,
                Tile::kColumns, tile);
  __syncthreads();
  // Where the text has a launch of its own, by both: the same values.
  if (shared.first) store_rows(found, shared.at, tile);
  const TileEnd<Tile, Tile::kColumns> end(found, shared.at, tile, tile.sums(), shared.first_column, Tile::kRows);
  const bool turn = !shared.text && shared.columns_at == Tile::kRows;
  if (shared.text)
    end.store_text();
  else
    end.store_products(turn);
  if (Tile::kBlocks > 1) cluster_end(); // what the others read is there until then
}

template <typename T, typename Tile>
__global__ void __launch_bounds__(runs_here<Tile>() ? kTileThreads : 32, Tile::kResident)
    similarity_kernel(const Tokens visual, const Tokens text, const Layout slots, const int64_t dim,
                      const Similarities found, const unsigned tiles) {
  MI_PRUNER_SHARED(SimilarityShared<Tile>, shared);
  if constexpr (runs_here<Tile>()) compute_tile<T>(visual, text, slots, dim, found, tiles, shared);
}

} // namespace mi_pruner::cuda

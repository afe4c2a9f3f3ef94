// The Gram matrix of halves by groups of warps, in tiles of 128 x 128, and short text beside it.
//
// Mapping: one block, or one cluster, a tile on or below the diagonal, those on it first. A tile on it has its columns
// as rows, so that there is room for text in the stages: up to 64 tokens are multiplied beside it. What is left is what
// similarity.cuh says.
//
// Norms are what stands on the diagonal: nobody sums squares beside the product (text's alone), and nobody waits for
// them: the normalisers take the products as they are.
//
// Cost: 2 D flops an element of half of the matrix. Bound by matrix instructions and L2. Determinism: as
// similarity.cuh.
#pragma once

#include "cuda/kernels/similarity.cuh"

namespace mi_pruner::cuda {

// A block's tile.
struct GramTile {
  unsigned sample, row_tile, column_tile;

  // Number `at` of all samples' tiles, `row_tiles` down.
  __device__ GramTile(unsigned at, unsigned row_tiles) {
    const unsigned each = row_tiles * (row_tiles + 1) / 2;
    unsigned tile = at % each;
    sample = at / each;
    row_tile = column_tile = tile;
    if (tile < row_tiles) return;
    tile -= row_tiles;
    for (row_tile = 1; tile >= row_tile; ++row_tile)
      tile -= row_tile;
    column_tile = tile;
  }
};

template <typename T, typename Tile>
__device__ void compute_gram_tile(const Tokens& visual, const Tokens& text, const Layout& slots, int64_t dim,
                                  const Similarities& found, unsigned row_tiles, SimilarityShared<Tile>& shared) {
  constexpr int kRows = Tile::kRows;
  TileShared<Tile>& tile = shared.tile;
  const int rank = rank_of_block<Tile>(), own = rank * kOwnRows<Tile>;
  const bool beside = found.text_tiles > 0; // else it has a launch of its own, or there is none
  {
    const GramTile at(blockIdx.x / Tile::kBlocks, row_tiles);
    const bool diagonal = at.row_tile == at.column_tile;
    if (visual.layout.packed())
      find_all_ends(visual.layout, text.layout, slots, at.sample, rank == 0 && at.row_tile == 0, shared.ends);
    const int64_t first_row = int64_t{at.row_tile} * kRows, first_column = int64_t{at.column_tile} * kRows;
    const Span rows = span_of(visual.layout, at.sample, shared.ends[0]),
               texts = beside && diagonal ? span_of(text.layout, at.sample, shared.ends[1]) : Span{};
    if (first_row >= rows.count) return;
    if (threadIdx.x == 0) {
      shared.at = {at.sample, first_row, rows, texts};
      shared.first_column = first_column;
      shared.columns_at = diagonal ? 0 : kRows;
    }
    if (rank == 0 && first_row == 0 && threadIdx.x < texts.count) // of the first row's diagonal alone
      prepare_normalisers(found, at.sample, texts, threadIdx.x);
    const Rows<T> row_features = rows_of<T>(visual, at.sample, rows);
    const int64_t columns = diagonal ? texts.count : rows.count, from = diagonal ? 0 : first_column;
    TileSource<T, Tile> source(
        row_features, [&](int r) { return first_row + r < rows.count ? first_row + r : -1; },
        diagonal && beside ? rows_of<T>(text, at.sample, texts) : row_features,
        [&](int c) { return from + c < columns ? from + c : -1; }, rank * share_of(stages_of<T>(dim)), tile);
    if (diagonal && beside)
      multiply_tile<true>(source, dim, 0, Tile::kColumns, rank, tile);
    else
      multiply_tile<false>(source, dim, diagonal ? 0 : kRows, Tile::kColumns, rank, tile);
  }
  const TileOf& at = shared.at;
  const Span &rows = at.rows, &texts = at.text;
  const TileEnd<Tile, Tile::kColumns> end(found, at, tile, tile.sums(), shared.first_column, shared.columns_at);
  const bool diagonal = shared.columns_at == 0;
  end.store_products(!diagonal);
  if (!diagonal) {
    if (Tile::kBlocks > 1) cluster_end(); // what the others read is there until then
    return;
  }
  if (Tile::kBlocks > 1) __syncthreads();
  if (threadIdx.x < kOwnRows<Tile>) {
    const int row = own + static_cast<int>(threadIdx.x);
    tile.set_norm(row, norm_of(*tile.sums().at(row, row)));
  }
  if (beside) take_norms(kRows, kRows + Tile::kBeside, tile);
  __syncthreads();
  store_weights(visual.prior, rows.begin, at.first_row + own, rows.count, own, kOwnRows<Tile>, tile);
  if (beside) store_weights(text.prior, texts.begin, 0, texts.count, kRows, Tile::kBeside, tile);
  __syncthreads();
  store_rows(found, at, tile);
  if (beside) TileEnd<Tile, Tile::kBeside>(found, at, tile, tile.beside(), 0, kRows).store_text();
  if (Tile::kBlocks > 1) cluster_end();
}

template <typename T, typename Tile>
__global__ void __launch_bounds__(runs_here<Tile>() ? kTileThreads : 32, Tile::kResident)
    gram_kernel(const Tokens visual, const Tokens text, const Layout slots, const int64_t dim, const Similarities found,
                const unsigned row_tiles) {
  MI_PRUNER_SHARED(SimilarityShared<Tile>, shared);
  if constexpr (runs_here<Tile>()) compute_gram_tile<T>(visual, text, slots, dim, found, row_tiles, shared);
}

} // namespace mi_pruner::cuda

// Norms and cosines in one pass: visual tokens against the text, and against one another.
//
// Mapping: one block a tile (tile.cuh); tiles of the same visual tokens lie next to one another and share them in L2.
// A tile of text columns leaves the cosines (a visual token's row contiguous), and its shares of the bandwidth rule:
// the number, mean and sum of squared deviations of the valid pairs of each 32 x 32. A tile of visual columns leaves
// the cosines, and each row's share of its normaliser over the columns. The first tile of some rows leaves their norms
// and, for each 32, their share of the sum of the visual prior.
//
// Tiles of 128 rows read the least from L2; tiles of 64 rows take the multiprocessors in where there are few tiles.
// Every number that is left belongs to two tokens, to 32 rows, to 32 x 32 pairs, or to a row and 64 columns: it has the
// same bits from either.
//
// Cost: 2 D flops a cosine. Bytes: `visual` once (M <= 64: one column of tiles; what the gram reads again comes from
// L2), the text once a row of tiles, the cosines once. Bound by memory for the scores, by shared memory and L2 for the
// gram.
//
// Determinism: nothing is added by atomics; parts are combined in order by the kernels that follow.
#pragma once

#include "cuda/tile.cuh"

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

// Number, mean and squared deviations of the valid pairs of this warp.
template <int kRows>
__device__ void store_moments(const TileFragment& tile, const bool (&valid_row)[kOwnRows],
                              const TileShared<kRows>& shared, float* moments) {
  // The sum of f(cosine) over the thread's valid pairs.
  const auto sum = [&](const auto& f) {
    return sum_of_groups([&](int n) {
      float sum = 0;
#pragma unroll
      for (int c = 2 * n; c < 2 * n + 2; ++c) {
        const bool valid = shared.column_weight[fragment_column<kRows>(c)] > -MI_PRUNER_INFINITY;
#pragma unroll
        for (int r = 0; r < kOwnRows; ++r)
          if (valid && valid_row[r]) sum += f(tile.at(r, c));
      }
      return sum;
    });
  };
  const float number = warp_reduce<Sum>(sum([](float) { return 1.0f; })),
              mean = warp_reduce<Sum>(sum([](float cosine) { return cosine; })) / fmaxf(number, 1),
              squares = warp_reduce<Sum>(sum([&](float cosine) { return (cosine - mean) * (cosine - mean); }));
  if (threadIdx.x % 32 > 0) return;
  moments[0] = number;
  moments[1] = mean;
  moments[2] = squares;
}

// The norms of the tile's rows, and their share of the visual prior.
template <int kRows>
__device__ void store_rows(const Similarities& found, const SimilarityTile<kRows>& at, const Span& rows,
                           const TileShared<kRows>& shared) {
  if (threadIdx.x >= kRows || at.first_row() + threadIdx.x / kPatch * kPatch >= rows.count) return; // a whole warp
  const int64_t row = at.first_row() + threadIdx.x;
  if (row < rows.count) found.visual_norm[rows.begin + row] = shared.row_norm[threadIdx.x];
  const float weight = shared.row_weight[threadIdx.x];
  const float top = warp_reduce<Largest>(weight), total = warp_reduce<Sum>(expf(weight - shift_of(top)));
  if (threadIdx.x % 32 == 0) found.prior_parts[at.sample * found.row_patches + row / kPatch] = {top, total};
}

template <int kRows>
__device__ void finish_text(const TileFragment& tile, const Similarities& found, const SimilarityTile<kRows>& at,
                            const Span& rows, const Span& columns, const TileShared<kRows>& shared) {
  if (at.first_row() == 0 && threadIdx.x < kTileColumns && at.first_column() + threadIdx.x < columns.count) {
    const int64_t column = at.first_column() + threadIdx.x;
    found.text_norm[columns.begin + column] = shared.column_norm[threadIdx.x];
    if (column % kTextGroup == 0) found.arrivals[at.sample * found.text_groups + column / kTextGroup] = 0;
  }
  bool valid[kOwnRows];
#pragma unroll
  for (int r = 0; r < kOwnRows; ++r)
    valid[r] = shared.row_weight[fragment_row<kRows>(r)] > -MI_PRUNER_INFINITY;
  const TilePlace place{at.first_column(), columns.count, [&](int r) {
                          const int64_t row = at.first_row() + r;
                          return row < rows.count ? found.cosines + (rows.begin + row) * found.cosine_stride : nullptr;
                        }};
  place.template store<kRows>(tile);
  const int64_t first_row = at.first_row() + patch_row<kRows>(),
                first_column = at.first_column() + patch_column<kRows>();
  if (first_row >= rows.count || first_column >= columns.count) return;
  const int64_t patch = (at.sample * found.row_patches + first_row / kPatch) * found.text_patches;
  store_moments(tile, valid, shared, found.moments + 3 * (patch + first_column / kPatch));
}

// log K of the tile's rows with its columns, and their share of the rows' normalisers; `weights`: of the columns of this
// warp's rows. column_tile(row), token(row): of the columns; of the row, -1 for none.
template <int kRows, typename Token, typename Tile>
__device__ void store_gram(const TileFragment& tile, const Similarities& found, const Span& rows, const float* weights,
                           const Token& token, const Tile& column_tile, TileShared<kRows>& shared) {
  const auto row_of = [&](int row) { return rows.begin + token(row); };
  const TilePlace place{column_tile(patch_row<kRows>()) * kTileColumns, rows.count, [&](int row) {
                          return token(row) < 0 ? nullptr : found.gram + row_of(row) * found.gram_stride;
                        }};
  place.template store<kRows>(tile);
  for_each_part(tile, weights, shared, [&](int row, const LogSum& part) {
    if (token(row) >= 0) found.parts[row_of(row) * found.visual_tiles + column_tile(row)] = part;
  });
}

// The tile the other way round: its 64 columns as rows 0 to 63, with its first 64 rows as columns, and, of 128 rows, as
// rows 64 to 127, with the others. So a part has the bits that it would have in a tile above the diagonal.
template <int kRows> __device__ void transpose(TileFragment& tile, TileShared<kRows>& shared) {
  constexpr int kPitch = kTileColumns + 4; // no two lanes in one bank
  float(&turned)[kRows][kPitch] = *reinterpret_cast<float(*)[kRows][kPitch]>(shared.stages);
  static_assert(sizeof turned <= sizeof shared.stages);
#pragma unroll
  for (int r = 0; r < kOwnRows; ++r)
#pragma unroll
    for (int c = 0; c < kOwnColumns; ++c) {
      const int row = fragment_row<kRows>(r), half = row / kTileColumns * kTileColumns;
      turned[half + fragment_column<kRows>(c)][row - half] = tile.at(r, c);
    }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kOwnRows; ++r)
#pragma unroll
    for (int c = 0; c < kOwnColumns; ++c)
      tile.at(r, c) = turned[fragment_row<kRows>(r)][fragment_column<kRows>(c)];
}

template <int kRows>
__device__ void finish_gram(TileFragment& tile, float kappa, const Similarities& found,
                            const SimilarityTile<kRows>& at, const Span& rows, TileShared<kRows>& shared) {
  const auto inside = [&](int64_t token) { return token < rows.count ? token : -1; };
  take_log_kernels(tile, kappa);
  store_gram<kRows>(
      tile, found, rows, shared.column_weight, [&](int row) { return inside(at.first_row() + row); },
      [&](int) { return int64_t{at.column_tile()}; }, shared);
  if (!at.below_diagonal()) return;
  transpose<kRows>(tile, shared);
  store_gram<kRows>(
      tile, found, rows, shared.row_weight + patch_row<kRows>() / kTileColumns * kTileColumns,
      [&](int row) { // none where the other 64 rows are no tokens
        const bool any = at.first_row() + row / kTileColumns * kTileColumns < rows.count;
        return any ? inside(at.first_column() + row % kTileColumns) : -1;
      },
      [&](int row) { return at.first_row() / kTileColumns + row / kTileColumns; }, shared);
}

template <int kRows> struct SimilarityShared {
  TileShared<kRows> tile;
  SimilarityTile<kRows> at; // of the block, as the spans: there are no registers for them beside the product
  Span rows, columns;
};
static_assert(sizeof(SimilarityShared<kTileRows>) <= kMostShared);
static_assert(sizeof(SimilarityShared<kSmallTileRows>) <= kMostShared);

// `tiles`: of a sample. `parts`: blocks of a cluster that share a tile; 1: a block does all of it.
template <typename T, int kRows>
__global__ void __launch_bounds__(tile_threads(kRows), 2)
    similarity_kernel(const Tokens visual, const Tokens text, const int64_t dim, const float kappa,
                      const Similarities found, const unsigned tiles, const unsigned parts) {
  MI_PRUNER_SHARED(SimilarityShared<kRows>, shared);
  TileFragment tile;
  {
    const SimilarityTile<kRows> at(found, blockIdx.x / parts, tiles);
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
    const int part = static_cast<int>(blockIdx.x % parts);
    const Rows<T> row_features = rows_of<T>(visual, at.sample, rows);
    TileSource<T, kRows> source(
        row_features, [&](int r) { return at.first_row() + r < rows.count ? at.first_row() + r : -1; },
        at.text() ? rows_of<T>(text, at.sample, columns) : row_features,
        [&](int c) { return at.first_column() + c < columns.count ? at.first_column() + c : -1; }, part * kPartStages,
        shared.tile);
    if (kRows == kSmallTileRows && parts > 1) {
      if (!cosine_tile_of_cluster(source, dim, used(columns), part, static_cast<int>(parts), shared.tile, tile)) return;
    } else {
      float* const matrix = at.text() ? found.cosines : found.gram;
      const int64_t stride = at.text() ? found.cosine_stride : found.gram_stride;
      const TilePlace place{shared.at.first_column(), shared.columns.count, [&](int r) {
                              const int64_t row = shared.at.first_row() + r;
                              return row < shared.rows.count ? matrix + (shared.rows.begin + row) * stride : nullptr;
                            }};
      cosine_tile(source, dim, used(columns), place, shared.tile, tile);
    }
  }
  const SimilarityTile<kRows>& at = shared.at;
  const Span &rows = shared.rows, &columns = shared.columns;
  store_weights(visual.prior, rows.begin, at.first_row(), rows.count, shared.tile.row_norm, shared.tile.row_weight);
  store_weights(at.text() ? text.prior : visual.prior, columns.begin, at.first_column(), columns.count,
                shared.tile.column_norm, shared.tile.column_weight);
  __syncthreads();
  if (at.tile == 0) store_rows(found, at, rows, shared.tile);
  if (at.text())
    finish_text(tile, found, at, rows, columns, shared.tile);
  else
    finish_gram(tile, kappa, found, at, rows, shared.tile);
}

} // namespace mi_pruner::cuda

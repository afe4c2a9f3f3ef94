// Norms and cosines in one pass: visual tokens against the text, and against one another.
//
// Mapping: one block a tile (tile.cuh); tiles of the same visual tokens lie next to one another and share them in L2.
// A tile of text columns leaves the cosines (a visual token's row contiguous), and its share of the bandwidth rule:
// the number, mean and sum of squared deviations of its valid pairs. A tile of visual columns leaves the cosines, and
// each row's share of its normaliser over the columns.
//
// Cost: 2 D flops a cosine. Bytes: `visual` once (M <= 64: one column of tiles; what the gram reads again comes from
// L2), the text once a row of tiles, the cosines once. Bound by memory for the scores, by L2 and the tensor cores for
// the gram.
//
// Determinism: nothing is added by atomics; parts are combined in order by the kernels that follow.
#pragma once

#include "cuda/tile.cuh"

namespace mi_pruner::cuda {

// Number, mean and squared deviations of the tile's valid pairs.
__device__ inline void store_moments(const TileFragment& tile, const float (&row_weight)[2], TileShared& shared,
                                     float* moments) {
  const auto valid = [&](int n, int e) {
    return row_weight[e / 2] > -MI_PRUNER_INFINITY &&
           shared.column_weight[fragment_column(n) + e % 2] > -MI_PRUNER_INFINITY;
  };
  float number = 0, sum = 0, squares = 0;
  for (int n = 0; n < kTileColumns / 8; ++n)
    for (int e = 0; e < 4; ++e)
      if (valid(n, e)) {
        number += 1;
        sum += tile.cosine[n][e];
      }
  number = block_reduce<Sum>(number, shared.scratch);
  const float mean = block_reduce<Sum>(sum, shared.scratch) / fmaxf(number, 1);
  for (int n = 0; n < kTileColumns / 8; ++n)
    for (int e = 0; e < 4; ++e)
      if (valid(n, e)) {
        const float off = tile.cosine[n][e] - mean;
        squares = fmaf(off, off, squares);
      }
  squares = block_reduce<Sum>(squares, shared.scratch);
  if (threadIdx.x == 0) {
    moments[0] = number;
    moments[1] = mean;
    moments[2] = squares;
  }
}

struct SimilarityTile {
  int64_t sample, row_tile, tile;
  bool text;
  int64_t first_row, first_column;
};

__device__ inline SimilarityTile similarity_tile(const Similarities& found) {
  const unsigned across = static_cast<unsigned>(found.text_tiles + found.visual_tiles), tile = blockIdx.x % across,
                 rows = static_cast<unsigned>(found.row_tiles), row_tile = blockIdx.x / across % rows;
  const bool text = tile < found.text_tiles;
  return {blockIdx.x / across / rows,
          row_tile,
          tile,
          text,
          int64_t{row_tile} * kTileRows,
          (text ? tile : tile - found.text_tiles) * kTileColumns};
}

template <typename T>
__global__ void __launch_bounds__(kTileThreads, 2)
    similarity_kernel(const Tokens visual, const Tokens text, const int64_t dim, const float kappa,
                      const Similarities found) {
  MI_PRUNER_SHARED(TileShared, shared);
  const SimilarityTile at = similarity_tile(found);
  const Span rows = span_of(visual.layout, at.sample);
  const Span columns = at.text ? span_of(text.layout, at.sample) : rows;
  // A sample without text still needs the norms of its visual tokens: the first tile of a row always runs.
  if (at.first_row >= rows.count || (at.first_column >= columns.count && at.tile > 0)) return;
  const Rows<T> row_features = rows_of<T>(visual, at.sample, rows);
  const TileSource<T> source(
      row_features, [&](int r) { return at.first_row + r < rows.count ? at.first_row + r : -1; },
      at.text ? rows_of<T>(text, at.sample, columns) : row_features,
      [&](int c) { return at.first_column + c < columns.count ? at.first_column + c : -1; });
  const int64_t left = columns.count - at.first_column;
  TileFragment tile;
  cosine_tile(source, dim, left < 0 ? 0 : left < kTileColumns ? static_cast<int>(left) : kTileColumns, shared, tile);
  store_column_weights(at.text ? text.prior : visual.prior, columns.begin, at.first_column, columns.count, shared);
  float row_weight[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = at.first_row + fragment_row(half), token = rows.begin + row;
    row_weight[half] = -MI_PRUNER_INFINITY;
    LogSum part{};
    if (!at.text) part = normaliser_part(tile, shared.column_weight, half, kappa);
    if (row >= rows.count) continue;
    row_weight[half] = log_weight(visual.prior, token, tile.row_norm[half]);
    if (at.tile == 0 && threadIdx.x % 4 == 0) found.visual_norm[token] = tile.row_norm[half];
    if (!at.text && threadIdx.x % 4 == 0)
      found.parts[token * found.visual_tiles + at.first_column / kTileColumns] = part;
    store_row(tile, half,
              at.text ? found.cosines + token * found.cosine_stride : found.gram + token * found.gram_stride,
              at.first_column, columns.count);
  }
  if (!at.text) return;
  if (at.row_tile == 0 && threadIdx.x < kTileColumns && threadIdx.x < left)
    found.text_norm[columns.begin + at.first_column + threadIdx.x] = shared.column_norm[threadIdx.x];
  const int64_t place = (at.sample * found.row_tiles + at.row_tile) * found.text_tiles + at.tile;
  store_moments(tile, row_weight, shared, found.moments + 3 * place);
}

} // namespace mi_pruner::cuda

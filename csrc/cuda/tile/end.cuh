// What follows a tile's product: by one block, or by those of a cluster, each for some of the rows.
#pragma once

#include <type_traits>
#include <utility>

#include "cuda/tile/product.cuh"
#include "cuda/tile/rows.cuh"

namespace mi_pruner::cuda {

// Which tile: of a sample, its first row; its rows' span, and its text's.
struct TileOf {
  unsigned sample;
  int64_t first_row;
  Span rows, text;
};

// The rows, or columns, that a block of a cluster sees to.
template <typename Tile> __device__ int rank_of_block() { return static_cast<int>(blockIdx.x % Tile::kBlocks); }
template <typename Tile> constexpr int kOwnRows = Tile::kRows / Tile::kBlocks;
static_assert(kTileRows / kShares == kPatchRows);
constexpr unsigned kPatchMask = (1u << kPatchRows) - 1;

// The log weights of the block's rows, their norms, and their shares of the sum of the visual prior.
template <typename Tile>
__device__ void store_rows(const Similarities& found, const TileOf& at, const TileShared<Tile>& tile) {
  const int r = rank_of_block<Tile>() * kOwnRows<Tile> + static_cast<int>(threadIdx.x);
  const int64_t row = at.first_row + r;
  const Span& rows = at.rows;
  if (threadIdx.x / 32 * 32 >= kOwnRows<Tile>) return; // a whole warp
  const bool own = threadIdx.x < kOwnRows<Tile> && row < rows.count;
  const float weight = own ? tile.weight[r] : -MI_PRUNER_INFINITY;
  if (own) {
    found.visual_log_weight[rows.begin + row] = weight;
    if (found.visual_norm != nullptr) found.visual_norm[rows.begin + row] = tile.norm[r];
  }
  const float top = warp_reduce<Largest, kPatchRows>(weight),
              total = warp_reduce<Sum, kPatchRows>(expf(weight - shift_of(top)));
  const unsigned valid = __ballot_sync(kFullWarp, weight > -MI_PRUNER_INFINITY) >> threadIdx.x % 32 & kPatchMask;
  if (own && threadIdx.x % kPatchRows == 0)
    found.prior_parts[at.sample * found.row_patches + row / kPatchRows] = {{top, total},
                                                                           static_cast<unsigned>(__popc(valid))};
}

// Number, mean and squared deviations of the valid pairs of a patch, by a warp, a column a lane: element(row, column).
template <typename Tile, typename Element>
__device__ void store_moments(const TileShared<Tile>& shared, const Element& element, int first_row, int first_column,
                              float* moments) {
  static_assert(kPatchColumns == 32);
  const int lane = threadIdx.x % 32, column = first_column + lane;
  const auto valid = [&](int token) { return shared.weight[token] > -MI_PRUNER_INFINITY; };
  const unsigned rows = __ballot_sync(kFullWarp, lane < kPatchRows && valid(first_row + lane % kPatchRows)),
                 columns = __ballot_sync(kFullWarp, valid(Tile::kRows + column));
  float cosines[kPatchRows]; // read side by side
#pragma unroll
  for (int r = 0; r < kPatchRows; ++r)
    cosines[r] = element(first_row + r, column);
  const auto sum = [&](const auto& f) {
    float sum = 0;
#pragma unroll
    for (int r = 0; r < kPatchRows; ++r)
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

// What is made of the products with `kColumns` columns.
template <typename Tile, int kColumns> class TileEnd {
public:
  // `first_column`: of the sample's text, or visual tokens; `columns_at`: its place among the tile's tokens.
  __device__ TileEnd(const Similarities& found, const TileOf& at, const TileShared<Tile>& tile,
                     const Sums<kColumns>& sums, int64_t first_column, int columns_at)
      : found_(found), at_(at), tile_(tile), sums_(sums), first_column_(first_column), columns_at_(columns_at),
        rank_(rank_of_block<Tile>()) {}

  // Cosines of the block's rows with the text, and their moments.
  __device__ void store_text() const {
    const Span &rows = at_.rows, &text = at_.text;
    if (rank_ == 0 && at_.first_row == 0 && threadIdx.x < kColumns && first_column_ + threadIdx.x < text.count)
      found_.text_log_weight[text.begin + first_column_ + threadIdx.x] = tile_.weight[columns_at_ + threadIdx.x];
    take_cosines(
        rank_ * kOwnRows<Tile>, kOwnRows<Tile>, columns_at_, [&](int row, int quad) { return sum_of(row, quad); },
        [](float cosine) { return cosine; }, sums_, tile_);
    __syncthreads();
    for_each_part([&](int r, int first) {
      const int64_t row = at_.first_row + r;
      if (row >= rows.count) return;
      LaneRow x;
      load_row(r, first, x);
      store_row(x, found_.cosines + (rows.begin + row) * found_.cosine_stride, first_column_ + first, text.count);
    });
    // The patches, shared among the warps.
    constexpr int kDown = kOwnRows<Tile> / kPatchRows, kPatches = kDown * kColumns / kPatchColumns;
#pragma unroll 1
    for (int patch = static_cast<int>(threadIdx.x) / 32; patch < kPatches; patch += kTileThreads / 32) {
      const int row = rank_ * kOwnRows<Tile> + patch % kDown * kPatchRows, column = patch / kDown * kPatchColumns;
      const int64_t first_row = at_.first_row + row, first_column = first_column_ + column;
      if (first_row >= rows.count || first_column >= text.count) continue;
      const int64_t place = (at_.sample * found_.row_patches + first_row / kPatchRows) * found_.text_patches;
      store_moments(
          tile_, [&](int r, int c) { return *sums_.at(r, c); }, row, column,
          found_.moments + 3 * (place + first_column / kPatchColumns));
    }
  }

  // The sums as they are: also turned, where that is asked for.
  __device__ void store_products(bool turn) const {
    const Span& rows = at_.rows;
    for_each_part([&](int r, int first) {
      const int64_t row = at_.first_row + r;
      LaneRow x;
#pragma unroll
      for (int k = 0; k < kLaneQuads; ++k)
        x[k] = sum_of(r, first / 4 + lane_quad(k));
      if constexpr (Tile::kBlocks > 1)
#pragma unroll
        for (int k = 0; k < kLaneQuads; ++k)
          *reinterpret_cast<float4*>(sums_.four(r, first / 4 + lane_quad(k))) = x[k];
      if (row < rows.count && first_column_ + first < rows.count)
        store_row(x, found_.gram + (rows.begin + row) * found_.gram_stride, first_column_ + first, rows.count);
    });
    if (!turn) return;
    __syncthreads();
    constexpr int kFours = kOwnRows<Tile> / 4;
#pragma unroll 1
    for (int k = static_cast<int>(threadIdx.x); k < kFours * kColumns; k += kTileThreads) {
      const int column = k / kFours, row = rank_ * kOwnRows<Tile> + k % kFours * 4;
      if (first_column_ + column < rows.count && at_.first_row + row < rows.count)
        *reinterpret_cast<float4*>(found_.gram + (rows.begin + first_column_ + column) * found_.gram_stride +
                                   at_.first_row + row) = sums_.four_down(row, column);
    }
  }

private:
  // f(row, first column) for the block's rows and each 64 columns of them, by the threads that took their cosines.
  template <typename F> __device__ void for_each_part(const F& f) const {
    constexpr int kNumber = Tile::kRows * kColumns / Tile::kBlocks / kTileColumns;
    for_each_row(kNumber,
                 [&](int k) { f(rank_ * kOwnRows<Tile> + k % kOwnRows<Tile>, k / kOwnRows<Tile> * kTileColumns); });
  }

  __device__ void load_row(int row, int first, LaneRow& x) const {
#pragma unroll
    for (int k = 0; k < kLaneQuads; ++k)
      x[k] = four_of(sums_.four(row, first / 4 + lane_quad(k)));
  }

  // Of all shares.
  __device__ float4 sum_of(int row, int quad) const {
    const float* const own = sums_.four(row, quad);
    if constexpr (Tile::kBlocks == 1) return four_of(own);
    float4 share[Tile::kBlocks], sum{};
    load_shares(own, share, std::make_integer_sequence<int, Tile::kBlocks>());
#pragma unroll
    for (int block = 0; block < Tile::kBlocks; ++block)
      sum = each(sum, share[block], [](float a, float b) { return a + b; });
    return sum;
  }

  // From the block's own on, so that not all read from the same one. Registers have no numbers but at compile time: a
  // copy of the loads for each rank.
  template <int... kRanks>
  __device__ void load_shares(const float* own, float4 (&share)[Tile::kBlocks],
                              std::integer_sequence<int, kRanks...>) const {
    const auto load = [&](auto first) {
#pragma unroll
      for (int k = 0; k < Tile::kBlocks; ++k) {
        const int block = (decltype(first)::value + k) % Tile::kBlocks;
        share[block] = load_from(reinterpret_cast<const float4*>(own), block);
      }
    };
    ((rank_ == kRanks ? load(std::integral_constant<int, kRanks>()) : void()), ...);
  }

  const Similarities& found_;
  const TileOf& at_;
  const TileShared<Tile>& tile_;
  const Sums<kColumns> sums_;
  const int64_t first_column_;
  const int columns_at_, rank_;
};

} // namespace mi_pruner::cuda

// What follows a product: cosines, and what is made of them, row by row in shared memory.
#pragma once

#include "cuda/tile/layout.cuh"

namespace mi_pruner::cuda {

// What follows a product goes over the rows in shared memory, 8 lanes a row: short loops. Over fragments, unrolled, it
// was 4,000 instructions more.
constexpr int kRowLanes = 8, kLaneColumns = kTileColumns / kRowLanes;

__device__ inline int lane_column(int k) { return threadIdx.x % kRowLanes + kRowLanes * k; }

// f(row), for the lanes of each of the rows [first, end); all threads take part as often.
template <typename F> __device__ void for_each_row(int first, int end, const F& f) {
#pragma unroll 1
  for (int row = first + static_cast<int>(threadIdx.x) / kRowLanes; row < end; row += kTileThreads / kRowLanes)
    f(row);
}

// map(cosine) of these rows in the place of their sums: sum(row, column).
template <int kRows, typename Sum, typename Map>
__device__ void take_cosines(int first, int end, const Sum& sum, const Map& map, TileShared<kRows>& shared) {
  for_each_row(first, end, [&](int row) {
    float x[kLaneColumns];
#pragma unroll
    for (int k = 0; k < kLaneColumns; ++k)
      x[k] = sum(row, lane_column(k));
#pragma unroll
    for (int k = 0; k < kLaneColumns; ++k) { // divided once: two reciprocals would double the rounding
      const float norms = shared.norm[row] * shared.norm[kRows + lane_column(k)];
      shared.row(row)[lane_column(k)] = map(norms > 0 ? x[k] / norms : 0.0f); // 0, too, for tokens not finite
    }
  });
}

// A row of the tile, or what is made of one, in its lanes.
using LaneRow = float[kLaneColumns];

__device__ inline void load_row(const float* row, LaneRow& x) {
#pragma unroll
  for (int k = 0; k < kLaneColumns; ++k)
    x[k] = row[lane_column(k)];
}

// The lanes' values of a row to `to`, one of `count` entries of which the tile's columns are those from `first` on; up
// to the next multiple of 4, since rows are read four at a time.
__device__ inline void store_row(const LaneRow& x, float* to, int64_t first, int64_t count) {
#pragma unroll
  for (int k = 0; k < kLaneColumns; ++k)
    if (first + lane_column(k) < (count + 3) / 4 * 4) to[first + lane_column(k)] = x[k];
}

// The part of a row's normaliser that the tile's columns are: max and sum of exp of log weight + log K.
__device__ inline LogSum part_of(const LaneRow& log_kernel, const float* weights) {
  LogSum part{-MI_PRUNER_INFINITY, 0};
  float x[kLaneColumns];
#pragma unroll
  for (int k = 0; k < kLaneColumns; ++k) {
    const float weight = weights[lane_column(k)];
    x[k] = weight == -MI_PRUNER_INFINITY ? weight : log_kernel[k] + weight;
    part.top = fmaxf(part.top, x[k]);
  }
  part.top = warp_reduce<Largest, kRowLanes>(part.top);
#pragma unroll
  for (int k = 0; k < kLaneColumns; ++k)
    part.total += exp_fast(x[k] - shift_of(part.top));
  part.total = warp_reduce<Sum, kRowLanes>(part.total);
  return part;
}

// The log weights of `members` tokens of a tile, [first, first + members) of a sample of `count`, `at` being the first
// in the tile.
template <int kRows>
__device__ void store_weights(const float* prior, int64_t begin, int64_t first, int64_t count, int at, int members,
                              TileShared<kRows>& shared) {
  const int member = static_cast<int>(threadIdx.x);
  if (member >= members) return;
  const int64_t token = first + member;
  shared.weight[at + member] =
      token < count ? log_weight(prior, begin + token, shared.norm[at + member]) : -MI_PRUNER_INFINITY;
}

} // namespace mi_pruner::cuda

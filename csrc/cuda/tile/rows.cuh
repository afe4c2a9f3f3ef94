// What follows a product: cosines, and what is made of them, row by row in shared memory.
#pragma once

#include "cuda/tile/layout.cuh"

namespace mi_pruner::cuda {

// What follows a product goes over rows of 64 columns in shared memory, 8 lanes a row: short loops. Over fragments,
// unrolled, it was 4,000 instructions more.
constexpr int kRowLanes = 8, kLaneQuads = kTileColumns / 4 / kRowLanes;

// A row of 64 columns, or what is made of one, in its lanes.
using LaneRow = float4[kLaneQuads];

// Which four columns a lane's k-th are, and their numbers.
__device__ inline int lane_quad(int k) { return threadIdx.x % kRowLanes + kRowLanes * k; }

// f(number) for the lanes of each of `count` rows; all threads of a warp take part as often.
template <typename F> __device__ void for_each_row(int count, const F& f) {
#pragma unroll 1
  for (int row = static_cast<int>(threadIdx.x) / kRowLanes; row < count; row += kTileThreads / kRowLanes)
    f(row);
}

// f(x, y) of each of four.
template <typename F> __device__ float4 each(const float4& x, const float4& y, const F& f) {
  return {f(x.x, y.x), f(x.y, y.y), f(x.z, y.z), f(x.w, y.w)};
}

template <typename F> __device__ float4 each(const float4& x, const float4& y, const float4& z, const F& f) {
  return {f(x.x, y.x, z.x), f(x.y, y.y, z.y), f(x.z, y.z, z.z), f(x.w, y.w, z.w)};
}

// Four of an array in shared memory.
__device__ inline float4 four_of(const float* from) { return *reinterpret_cast<const float4*>(from); }

// The product of two tokens over that of their norms, of which `inverse` is about the inverse: what is left over is
// divided once more, so that it is as near as a division, in a third of its instructions, and without its branches. 0,
// too, for tokens not finite.
__device__ inline float cosine_of(float product, float norms, float inverse) {
  const float about = product * inverse, cosine = fmaf(fmaf(-about, norms, product), inverse, about);
  return norms > 0 ? cosine : 0.0f;
}

// map(cosine) in the place of the sums of the rows [first, first + rows): sum(row, quad). `columns_at`: the first
// column's place among the tile's tokens.
template <typename Tile, int kColumns, typename Sum, typename Map>
__device__ void take_cosines(int first, int rows, int columns_at, const Sum& sum, const Map& map,
                             const Sums<kColumns>& sums, const TileShared<Tile>& shared) {
  for_each_row(rows * kColumns / kTileColumns, [&](int number) {
    const int row = first + number % rows, side = number / rows * (kTileColumns / 4);
    LaneRow x;
#pragma unroll
    for (int k = 0; k < kLaneQuads; ++k)
      x[k] = sum(row, side + lane_quad(k));
#pragma unroll
    for (int k = 0; k < kLaneQuads; ++k) {
      const int quad = side + lane_quad(k);
      const int column = columns_at + 4 * quad;
      const auto cosine = [&](float product, float norm, float inverse) {
        return map(cosine_of(product, shared.norm[row] * norm, shared.inverse[row] * inverse));
      };
      *reinterpret_cast<float4*>(sums.four(row, quad)) =
          each(x[k], four_of(shared.norm + column), four_of(shared.inverse + column), cosine);
    }
  });
}

// The lanes' values of a row to `to`, one of `count` entries of which its columns are those from `first` on; up to the
// next multiple of 4, since rows are read four at a time.
__device__ inline void store_row(const LaneRow& x, float* to, int64_t first, int64_t count) {
#pragma unroll
  for (int k = 0; k < kLaneQuads; ++k)
    if (first + 4 * lane_quad(k) < count) *reinterpret_cast<float4*>(to + first + 4 * lane_quad(k)) = x[k];
}

// The part of a row's normaliser that these columns are: max and sum of exp of log weight + log K.
__device__ inline LogSum part_of(const LaneRow& log_kernel, const float* weights) {
  LogSum part{-MI_PRUNER_INFINITY, 0};
  LaneRow x;
#pragma unroll
  for (int k = 0; k < kLaneQuads; ++k) {
    x[k] = each(log_kernel[k], four_of(weights + 4 * lane_quad(k)),
                [](float log_k, float weight) { return log_k + weight; }); // log K is finite, whatever the tokens are
    part.top = fmaxf(part.top, fmaxf(fmaxf(x[k].x, x[k].y), fmaxf(x[k].z, x[k].w)));
  }
  part.top = warp_reduce<Largest, kRowLanes>(part.top);
  const float shift = shift_of(part.top);
#pragma unroll
  for (int k = 0; k < kLaneQuads; ++k)
    part.total +=
        exp_fast(x[k].x - shift) + exp_fast(x[k].y - shift) + (exp_fast(x[k].z - shift) + exp_fast(x[k].w - shift));
  part.total = warp_reduce<Sum, kRowLanes>(part.total);
  return part;
}

// The log weights of `members` tokens of a tile, [first, first + members) of a sample of `count`, `at` being the first
// in the tile.
template <typename Tile>
__device__ void store_weights(const float* prior, int64_t begin, int64_t first, int64_t count, int at, int members,
                              TileShared<Tile>& shared) {
  const int member = static_cast<int>(threadIdx.x);
  if (member >= members) return;
  const int64_t token = first + member;
  shared.weight[at + member] =
      token < count ? log_weight(prior, begin + token, shared.norm[at + member]) : -MI_PRUNER_INFINITY;
}

} // namespace mi_pruner::cuda

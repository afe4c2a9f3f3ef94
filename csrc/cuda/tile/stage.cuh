// The products of one stage: cosines' sums and squared norms, of halves on the tensor cores, of floats by fused
// multiply-adds.
#pragma once

#include "cuda/base/reduce.cuh"
#include "cuda/tile/layout.cuh"

namespace mi_pruner::cuda {

// A thread's squares of the stages so far, or of one. The warps share the tokens among them, 8 at a time: the rows and
// columns that a warp takes first. Of halves, a square is in the lane that holds it in the diagonal of a product with
// itself; of floats, each lane of four has a quarter of the sum.
template <int kRows> struct TileSquares {
  using Fragment = TileFragment<kRows>;
  static_assert(WarpPart<kRows>::kDown == WarpPart<kRows>::kColumns / 8);
  float row[Fragment::kNormRows] = {}, column = 0;

  __device__ void operator+=(const TileSquares& other) {
    for (int k = 0; k < Fragment::kNormRows; ++k)
      row[k] += other.row[k];
    column += other.column;
  }

  static __device__ int own_row(int k) { return Fragment::row(k); }
  static __device__ int own_column() { return Fragment::column(0) / 8 * 8 + threadIdx.x % 32 / 4; }

  // After the last stage of a half.
  template <bool kDiagonal> __device__ void finish() {
    if constexpr (!kDiagonal) {
      for (float& square : row)
        square = warp_reduce<Sum, 4>(square);
      column = warp_reduce<Sum, 4>(column);
    }
  }

  // f(square, token of the tile), by the lane that has it; finished ones.
  template <bool kDiagonal, typename F> __device__ void for_each(const F& f) const {
    const unsigned lane = threadIdx.x % 32, holder = kDiagonal ? lane / 8 : 0;
    if (lane % 4 != holder) return;
    for (int k = 0; k < Fragment::kNormRows; ++k)
      f(row[k], own_row(k));
    f(column, kRows + own_column());
  }
};

// c = a b, with nothing to add to it, or more of it.
template <typename T>
__device__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool more, T) {
  constexpr float kZeros[4] = {};
  if (more)
    multiply(c, a, b0, b1, c, T{});
  else
    multiply(c, a, b0, b1, kZeros, T{});
}

// Where in a stage a lane finds what it gives to `load_matrices`: of the first 16 rows, and columns, that the warp
// takes, and of the first 16 halves. The others are at offsets that differ in single bits.
constexpr int kOtherTokens = 16 * kStageRow, kNextHalves = 32;
template <int kRows> struct MatrixPlaces {
  int rows, columns;

  __device__ MatrixPlaces() {
    const int lane = threadIdx.x % 32;
    using Fragment = TileFragment<kRows>;
    rows = piece_offset(Fragment::row(lane / 8 % 2) / 8 * 8 + lane % 8, lane / 16);
    columns = piece_offset(kRows + Fragment::column(lane / 16 * 2) / 8 * 8 + lane % 8, lane / 8 % 2);
    keep(rows);
    keep(columns);
  }
};

// One stage of halves; kAny: the warp has columns that hold a token, else there is no product. The product of 16 tokens
// with 8 of themselves, of which the diagonal is wanted, has its second factor among the registers of the first.
// between(part): what is to be done meanwhile.
template <bool kAny, int kRows, typename T, typename Between>
__device__ void add_stage(unsigned char* stage, const MatrixPlaces<kRows>& places, TileFragment<kRows>& product,
                          TileSquares<kRows>& squares, const Between& between, T) {
  using Fragment = TileFragment<kRows>;
  const int lane = threadIdx.x % 32;
  const SharedAddress start = shared_address(stage);
  Fragment sums;
  float row[Fragment::kNormRows][4], column[4];
#pragma unroll
  for (int step = 0; step < kParts; ++step) {
    const bool more = step > 0;
    uint32_t a[2][4];
    load_matrices(a[0], (start + places.rows) ^ kNextHalves * step);
    if constexpr (kRows == kTileRows) {
      if (step == 0)
        for (int part = 0; part < kParts; ++part)
          between(part);
    } else {
      between(step);
    }
#pragma unroll
    for (int k = 0; k < Fragment::kNormRows; ++k)
      multiply(row[k], a[0], a[0][k], a[0][k + 2], more, T{});
    if constexpr (kAny) {
      load_matrices(a[1], (start + (places.rows ^ kOtherTokens)) ^ kNextHalves * step);
#pragma unroll
      for (int pair = 0; pair < Fragment::kOwnColumns / 4; ++pair) {
        uint32_t b[4];
        load_matrices(b, (start + (places.columns ^ pair * kOtherTokens)) ^ kNextHalves * step);
#pragma unroll
        for (int side = 0; side < 2; ++side)
#pragma unroll
          for (int m = 0; m < 2; ++m)
            multiply(sums.sums[m][2 * pair + side], a[m], b[2 * side], b[2 * side + 1], more, T{});
        if (pair == 0) {
          const uint32_t as_rows[4] = {b[0], b[2], b[1], b[3]};
          multiply(column, as_rows, b[0], b[1], more, T{});
        }
      }
    }
  }
  const bool odd = lane / 4 % 2 == 1; // which of two elements is in the diagonal
#pragma unroll
  for (int k = 0; k < Fragment::kNormRows; ++k)
    squares.row[k] += odd ? row[k][2 * k + 1] : row[k][2 * k];
  if constexpr (kAny) {
    squares.column += odd ? column[1] : column[0];
    product += sums;
  }
}

__device__ inline float dot(const float4& a, const float4& b) {
  return fmaf(a.w, b.w, a.z * b.z) + fmaf(a.y, b.y, a.x * b.x);
}

// A stage of floats.
template <int kRows> __device__ void multiply_columns(unsigned char* stage, TileFragment<kRows>& product) {
  using Fragment = TileFragment<kRows>;
  constexpr int kOwnRows = Fragment::kOwnRows;
  const auto at = [&](int r, int piece) { return *reinterpret_cast<const float4*>(stage + piece_offset(r, piece)); };
#pragma unroll
  for (int c = 0; c < Fragment::kOwnColumns; c += 2) {
    float part[kOwnRows][2] = {};
#pragma unroll 2 // more would hold all of the rows in registers
    for (int piece = 0; piece < kPieces; ++piece) {
      const float4 b[2] = {at(kRows + Fragment::column(c), piece), at(kRows + Fragment::column(c + 1), piece)};
#pragma unroll
      for (int r = 0; r < kOwnRows; ++r) {
        const float4 a = at(Fragment::row(r), piece);
        for (int e = 0; e < 2; ++e)
          part[r][e] += dot(a, b[e]); // pieces from zero: fewer roundings of the long sum
      }
    }
#pragma unroll
    for (int r = 0; r < kOwnRows; ++r)
      for (int e = 0; e < 2; ++e)
        product.at(r, c + e) += part[r][e];
  }
}

template <bool kAny, int kRows, typename Between>
__device__ void add_stage(unsigned char* stage, const MatrixPlaces<kRows>&, TileFragment<kRows>& product,
                          TileSquares<kRows>& squares, const Between& between, float) {
#pragma unroll
  for (int part = 0; part < kParts; ++part)
    between(part);
  const auto add = [&](float& sum, int r, int piece) {
    const float4 x = *reinterpret_cast<const float4*>(stage + piece_offset(r, piece));
    sum += dot(x, x);
  };
  TileSquares<kRows> square;
#pragma unroll
  for (int piece = threadIdx.x % 4; piece < kPieces; piece += 4) { // lanes share a row's pieces among them
    for (int k = 0; k < TileFragment<kRows>::kNormRows; ++k)
      add(square.row[k], square.own_row(k), piece);
    add(square.column, kRows + square.own_column(), piece);
  }
  squares += square;
  if constexpr (kAny) multiply_columns<kRows>(stage, product);
}

} // namespace mi_pruner::cuda

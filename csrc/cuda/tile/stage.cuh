// The products of one stage: cosines' sums and squared norms, of halves on the tensor cores, of floats by fused
// multiply-adds.
#pragma once

#include <type_traits>

#include "cuda/base/reduce.cuh"
#include "cuda/tile/layout.cuh"

namespace mi_pruner::cuda {

// A thread's squares. The warps share the tokens among them, 8 at a time: the rows and columns that a warp takes first.
template <typename Tile> struct TileSquares {
  float row[Tile::kNormRows] = {}, column[Tile::kNormColumns] = {};

  __device__ void operator+=(const TileSquares& other) {
    for (int k = 0; k < Tile::kNormRows; ++k)
      row[k] += other.row[k];
    for (int k = 0; k < Tile::kNormColumns; ++k)
      column[k] += other.column[k];
  }

  static __device__ int own_row(int k) { return Tile::row(k); }
  static __device__ int own_column(int k) { return Tile::norm_columns(k) + threadIdx.x % 32 / 4; }

  // f(square, token of the tile), by the lane that has it: of halves, the one that holds it in the diagonal of a
  // product; of floats, any of four.
  template <bool kDiagonal, typename F> __device__ void for_each(const F& f) const {
    const unsigned lane = threadIdx.x % 32, holder = kDiagonal ? lane / 8 : 0;
    if (lane % 4 != holder) return;
    for (int k = 0; k < Tile::kNormRows; ++k)
      f(row[k], own_row(k));
    for (int k = 0; k < Tile::kNormColumns; ++k)
      f(column[k], Tile::kRows + own_column(k));
  }
};

// Those of 64 text tokens beside a tile of groups: in the diagonals of their product with the group's own 32 of them,
// which two warps of the four have.
template <typename Tile> struct TextSquares {
  static constexpr int kNumber = 2; // of a thread, of tokens 8 apart
  float text[kNumber] = {};

  __device__ void operator+=(const TextSquares& other) {
    for (int k = 0; k < kNumber; ++k)
      text[k] += other.text[k];
  }

  template <bool, typename F> __device__ void for_each(const F& f) const {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (lane % 4 != lane / 8 || warp % 4 / 2 != warp / 4) return;
    for (int k = 0; k < kNumber; ++k)
      f(text[k], Tile::kRows + static_cast<int>(warp % 4 * 16 + 8 * k + lane / 4));
  }
};

// Where norms are given.
struct NoSquares {
  __device__ void operator+=(const NoSquares&) {}
  template <bool, typename F> __device__ void for_each(const F&) const {}
};
template <typename Tile> using OwnSquares = std::conditional_t<Tile::kNormsGiven, NoSquares, TileSquares<Tile>>;

// Where in a stage a lane finds what it gives to `load_matrices`: of the first 16 rows, and columns, that the warp
// takes, and of the first 16 halves. The others are at offsets that differ in single bits. Columns as second factors.
constexpr int kOtherTokens = 16 * kStageRow, kNextHalves = 32;
template <typename Tile> struct MatrixPlaces {
  int rows, columns;

  __device__ explicit MatrixPlaces(int columns_at) {
    const int lane = threadIdx.x % 32;
    rows = piece_offset(Tile::row_group(lane / 8 % 2) + lane % 8, lane / 16);
    columns = piece_offset(columns_at + Tile::norm_columns(lane / 16) + lane % 8, lane / 8 % 2);
    keep(rows);
    keep(columns);
  }
};

// The product of 16 tokens with 8 of themselves, `k` of two, of which the diagonal is wanted: the second factor is
// among the registers of the first.
template <typename T> __device__ void add_squares(float (&sums)[4], const uint32_t (&tokens)[4], int k, T) {
  multiply(sums, tokens, tokens[k], tokens[k + 2], sums, T{});
}

// A thread's sums over a share of D, of halves: what the matrix instructions add up, from zero.
template <typename T, typename Tile> struct WarpShare {
  using Squares = OwnSquares<Tile>;
  TileFragment<Tile> products{};
  float row[Tile::kNormRows][4] = {}, column[Tile::kNormColumns][4] = {};

  // One stage. `any`: the warp has columns that hold a token, else it need not multiply. between(step): what is to be
  // done meanwhile.
  template <typename Between>
  __device__ void add(unsigned char* stage, const MatrixPlaces<Tile>& places, int, bool any, const Between& between) {
    if (any)
      add_by_warps<true>(stage, places, between);
    else
      add_by_warps<false>(stage, places, between);
  }

  template <bool kAny, typename Between>
  __device__ void add_by_warps(unsigned char* stage, const MatrixPlaces<Tile>& places, const Between& between) {
    const SharedAddress start = shared_address(stage);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t a[Tile::kRowGroups / 2][4];
      load_matrices(a[0], (start + places.rows) ^ kNextHalves * step);
      if (step == 0)
        for (int other = 0; other < kSteps; ++other)
          between(other);
#pragma unroll
      for (int k = 0; k < Tile::kNormRows; ++k)
        add_squares(row[k], a[0], k, T{});
      if constexpr (kAny) {
#pragma unroll
        for (int m = 1; m < Tile::kRowGroups / 2; ++m)
          load_matrices(a[m], (start + (places.rows ^ m * kOtherTokens)) ^ kNextHalves * step);
#pragma unroll
        for (int pair = 0; pair < Tile::kColumnGroups / 2; ++pair) {
          uint32_t b[4];
          load_matrices(b, (start + (places.columns ^ pair * kOtherTokens)) ^ kNextHalves * step);
#pragma unroll
          for (int side = 0; side < 2; ++side)
#pragma unroll
            for (int m = 0; m < Tile::kRowGroups / 2; ++m) {
              float (&sums)[4] = products.sums[m][2 * pair + side];
              multiply(sums, a[m], b[2 * side], b[2 * side + 1], sums, T{});
            }
          if (pair > 0) continue;
          const uint32_t as_rows[4] = {b[0], b[2], b[1], b[3]};
#pragma unroll
          for (int k = 0; k < Tile::kNormColumns; ++k)
            add_squares(column[k], as_rows, k, T{});
        }
      }
    }
  }

  __device__ void finish() {}

  __device__ Squares squares() const {
    Squares own;
    if constexpr (!Tile::kNormsGiven) {
      const bool odd = threadIdx.x / 4 % 2 == 1; // which of two elements is in the diagonal
#pragma unroll
      for (int k = 0; k < Tile::kNormRows; ++k)
        own.row[k] = odd ? row[k][2 * k + 1] : row[k][2 * k];
#pragma unroll
      for (int k = 0; k < Tile::kNormColumns; ++k)
        own.column[k] = odd ? column[k][2 * k + 1] : column[k][2 * k];
    }
    return own;
  }
};

// The same by groups of four warps, 64 rows each. `kBeside`: and their products with text in the columns' place, and
// the text's squares. Those of a wide tile's visual tokens are on the diagonal of its products.
template <typename T, typename Tile, bool kBeside> struct GroupShare {
  using Squares = std::conditional_t<kBeside, TextSquares<Tile>, NoSquares>;
  TileFragment<Tile> products{};
  BesideFragment<Tile> beside{};
  float text[4][4] = {}; // of 64 tokens with the group's own 32

  template <typename Between>
  __device__ void add(unsigned char* stage, const MatrixPlaces<Tile>&, int columns_at, bool, const Between& between) {
    const SharedAddress start = shared_address(stage), rows = start + Tile::down() / 4 * 64 * kStageRow,
                        columns = start + columns_at * kStageRow, texts = start + Tile::kRows * kStageRow,
                        own_texts = texts + Tile::down() / 4 * 32 * kStageRow;
    begin_products();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int place = kNextHalves * step;
      multiply_group(products.sums[0], rows + place, columns + place, T{});
      if constexpr (kBeside) {
        multiply_group(beside.sums[0], rows + place, texts + place, T{});
        multiply_group(text, texts + place, own_texts + place, T{});
      }
    }
    commit_products();
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      between(step);
    wait_for_products<Tile::kPending>();
  }

  // After the last stage: until then products are on their way.
  __device__ void finish() {
    wait_for_products(products.sums[0]);
    if constexpr (kBeside) {
      wait_for_products(beside.sums[0]);
      wait_for_products(text);
    }
  }

  __device__ Squares squares() const {
    Squares own;
    if constexpr (kBeside) {
      const bool odd = threadIdx.x / 4 % 2 == 1, second = threadIdx.x / 32 % 2 == 1;
#pragma unroll
      for (int k = 0; k < Squares::kNumber; ++k) {
        const float (&first)[4] = text[k], (&other)[4] = text[2 + k];
        own.text[k] = second ? (odd ? other[2 * k + 1] : other[2 * k]) : (odd ? first[2 * k + 1] : first[2 * k]);
      }
    }
    return own;
  }
};

__device__ inline float dot(const float4& a, const float4& b) {
  return fmaf(a.w, b.w, a.z * b.z) + fmaf(a.y, b.y, a.x * b.x);
}

// Of floats; lanes share a token's squares among them, a quarter each.
template <typename Tile> struct FloatShare {
  using Squares = OwnSquares<Tile>;
  TileFragment<Tile> products{};
  Squares quarters;

  template <typename Between>
  __device__ void add(unsigned char* stage, const MatrixPlaces<Tile>&, int columns_at, bool any,
                      const Between& between) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      between(step);
    const auto at = [&](int token, int piece) {
      return *reinterpret_cast<const float4*>(stage + piece_offset(token, piece));
    };
    if constexpr (!Tile::kNormsGiven) {
      const auto square = [&](int token, int piece) {
        const float4 x = at(token, piece);
        return dot(x, x);
      };
      Squares stage_squares;
#pragma unroll
      for (int piece = threadIdx.x % 4; piece < kPieces; piece += 4) {
        for (int k = 0; k < Tile::kNormRows; ++k)
          stage_squares.row[k] += square(quarters.own_row(k), piece);
        for (int k = 0; k < Tile::kNormColumns; ++k)
          stage_squares.column[k] += square(columns_at + quarters.own_column(k), piece);
      }
      quarters += stage_squares;
    }
    if (!any) return;
    constexpr int kOwnRows = products.kOwnRows;
#pragma unroll
    for (int c = 0; c < products.kOwnColumns; c += 2) {
      float part[kOwnRows][2] = {};
#pragma unroll 2 // more would hold all of the rows in registers
      for (int piece = 0; piece < kPieces; ++piece) {
        const float4 b[2] = {at(columns_at + Tile::column(c), piece), at(columns_at + Tile::column(c + 1), piece)};
#pragma unroll
        for (int r = 0; r < kOwnRows; ++r) {
          const float4 a = at(Tile::row(r), piece);
          for (int e = 0; e < 2; ++e)
            part[r][e] += dot(a, b[e]); // pieces from zero: fewer roundings of the long sum
        }
      }
#pragma unroll
      for (int r = 0; r < kOwnRows; ++r)
        for (int e = 0; e < 2; ++e)
          products.at(r, c + e) += part[r][e];
    }
  }

  __device__ void finish() {}

  __device__ Squares squares() const {
    Squares own = quarters;
    if constexpr (!Tile::kNormsGiven) {
      for (float& square : own.row)
        square = warp_reduce<Sum, 4>(square);
      for (float& square : own.column)
        square = warp_reduce<Sum, 4>(square);
    }
    return own;
  }
};

template <typename T, typename Tile, bool kBeside>
using Share = std::conditional_t<std::is_same_v<T, float>, FloatShare<Tile>,
                                 std::conditional_t<Tile::kGroups, GroupShare<T, Tile, kBeside>, WarpShare<T, Tile>>>;

} // namespace mi_pruner::cuda

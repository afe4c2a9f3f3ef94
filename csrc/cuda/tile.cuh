// Cosines of 128 tokens with 64 others, by one block of 256 threads.
//
// Algorithm: features arrive 128 bytes of a token at a time (64 halves or 32 floats), in a ring of three stages filled
// by cp.async, and are multiplied by warps of 16 x 64: halves on the tensor cores, floats by fused multiply-adds.
// Squared norms are summed beside the product from the same registers, and the cosine is the product over both norms:
// no normalised feature is ever written.
//
// Sums: a stage's products are summed from zero and then added to the total in float32. The tensor cores cut off where
// float32 rounds: over a long D that would make cosines of like tokens too small by up to D/16 units; here, by 4. An
// element's sum has one order, whatever its place, the tile, N or the batch: its bits are the two tokens' own. That
// holds for the norms, too, on either side of a tile.
//
// Floats are not three TF32 products: those are good to about 22 bits, and models on a GPU run in half precision.
//
// Shared memory: 3 x 24 KB, rows of 128 bytes whose 16-byte pieces are permuted by the row (no bank conflicts).
#pragma once

#include "cuda/weights.cuh"

namespace mi_pruner::cuda {

constexpr int kTileThreads = 256;
constexpr int kStages = 3; // two in flight while one is multiplied: two blocks of 74 KB fit in the 228 KB of an H100
constexpr int kStageRow = 128; // bytes of a token in a stage
constexpr int kPieces = kStageRow / 16;

struct TileShared {
  alignas(128) unsigned char stages[kStages][(kTileRows + kTileColumns) * kStageRow];
  float column_norm[kTileColumns];
  float column_weight[kTileColumns]; // log weights of the columns, for the users of a tile
  float scratch[kMostWarps];
};

// What a thread holds of a tile, as mma.m16n8k16 leaves it: of rows 16 warp + lane / 4 (elements 0, 1) and 8 below (2,
// 3) the columns 8 n + 2 (lane % 4) and its right neighbour.
struct TileFragment {
  float cosine[kTileColumns / 8][4];
  float row_norm[2];
};

__device__ inline int fragment_row(int half) { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * half; }
__device__ inline int fragment_column(int n) { return 8 * n + threadIdx.x % 4 * 2; }

__device__ inline unsigned char* piece_at(unsigned char* stage, int row, int piece) {
  return stage + row * kStageRow + (piece ^ (row & 7)) * 16;
}

// The six pieces of every stage that a thread copies: piece threadIdx % 8 of rows threadIdx / 8 + 32 k, columns last.
template <typename T> struct TileSource {
  static constexpr int kCopies = (kTileRows + kTileColumns) * kPieces / kTileThreads;
  static constexpr int kApart = kTileThreads / kPieces; // rows
  static constexpr int kElements = 16 / sizeof(T);
  const T* token[kCopies]; // null: absent, zeros
  const T* anywhere;
  bool aligned;

  // row_token(r), column_token(c): a token's number, -1 for none.
  template <typename RowToken, typename ColumnToken>
  __device__ TileSource(const Rows<T>& rows, const RowToken& row_token, const Rows<T>& columns,
                        const ColumnToken& column_token)
      : anywhere(rows.base), aligned(rows.aligned && columns.aligned) {
#pragma unroll
    for (int k = 0; k < kCopies; ++k) {
      const bool row = k < kTileRows / kApart;
      const int r = threadIdx.x / kPieces + k * kApart;
      const int64_t number = row ? row_token(r) : column_token(r - kTileRows);
      token[k] = number < 0 ? nullptr : row ? rows.base + number * rows.stride : columns.base + number * columns.stride;
    }
  }

  // The elements from `depth` on, to a stage.
  __device__ void copy(unsigned char* stage, int64_t depth, int64_t dim) const {
    const int piece = threadIdx.x % kPieces;
    const int64_t from = depth + piece * kElements, left = dim - from;
    const int count = left <= 0 ? 0 : left < kElements ? static_cast<int>(left) : kElements;
#pragma unroll
    for (int k = 0; k < kCopies; ++k) {
      unsigned char* to = piece_at(stage, threadIdx.x / kPieces + k * kApart, piece);
      const bool any = token[k] != nullptr && count > 0;
      if (aligned) {
        copy_async(to, any ? token[k] + from : anywhere, any ? count * sizeof(T) : 0);
      } else {
        for (int e = 0; e < kElements; ++e)
          reinterpret_cast<T*>(to)[e] = any && e < count ? token[k][from + e] : T{};
      }
    }
  }
};

// A thread's sums over the stages so far. `used`: columns that hold a token; the rest may be left out.
template <typename T> struct TileSums {
  float product[kTileColumns / 8][4] = {};
  float row_square[2] = {}, column_square = 0; // its quarter of rows fragment_row(0 and 1), of column 8 warp + lane / 4

  static __device__ void add_squares(float& sum, uint32_t pair) {
    const float low = widen(T{static_cast<uint16_t>(pair & 0xffff)}),
                high = widen(T{static_cast<uint16_t>(pair >> 16)});
    sum = fmaf(high, high, fmaf(low, low, sum));
  }

  __device__ void add(unsigned char* stage, int used) {
    constexpr int kSteps = kPieces / 2; // of 16 halves
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t a[kSteps][4];
    float squares[3] = {};
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      load_matrices(a[k], piece_at(stage, 16 * warp + lane % 16, 2 * k + lane / 16));
      add_squares(squares[0], a[k][0]);
      add_squares(squares[0], a[k][2]);
      add_squares(squares[1], a[k][1]);
      add_squares(squares[1], a[k][3]);
    }
#pragma unroll
    for (int pair = 0; pair < kTileColumns / 16; ++pair) {
      if (16 * pair >= used) break;
      float part[2][4] = {};
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        uint32_t b[4];
        const int row = kTileRows + 16 * pair + lane % 8 + lane / 16 * 8;
        load_matrices(b, piece_at(stage, row, 2 * k + lane / 8 % 2));
        multiply_add(part[0], a[k], b[0], b[1], T{});
        multiply_add(part[1], a[k], b[2], b[3], T{});
        if (warp / 2 == pair) { // columns 8 warp to 8 warp + 7 are in this pair
          add_squares(squares[2], warp % 2 ? b[2] : b[0]);
          add_squares(squares[2], warp % 2 ? b[3] : b[1]);
        }
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        product[2 * pair][e] += part[0][e];
        product[2 * pair + 1][e] += part[1][e];
      }
    }
    add_stage_squares(squares);
  }

  __device__ void add_stage_squares(const float (&squares)[3]) {
    row_square[0] += squares[0];
    row_square[1] += squares[1];
    column_square += squares[2];
  }
};

__device__ inline float dot(const float4& a, const float4& b) {
  return fmaf(a.w, b.w, a.z * b.z) + fmaf(a.y, b.y, a.x * b.x);
}

template <> __device__ inline void TileSums<float>::add(unsigned char* stage, int used) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = 16 * warp + lane / 4;
  const auto at = [&](int r, int piece) { return *reinterpret_cast<const float4*>(piece_at(stage, r, piece)); };
  float squares[3] = {};
#pragma unroll
  for (int piece = lane % 4; piece < kPieces; piece += 4) { // lanes share a row's pieces among them
    const float4 first = at(row, piece), second = at(row + 8, piece),
                 column = at(kTileRows + 8 * warp + lane / 4, piece);
    squares[0] += dot(first, first);
    squares[1] += dot(second, second);
    squares[2] += dot(column, column);
  }
#pragma unroll
  for (int n = 0; n < kTileColumns / 8; ++n) {
    if (8 * n >= used) break;
    float part[4] = {};
    const int column = kTileRows + fragment_column(n);
#pragma unroll 2 // more would hold all of the rows in registers
    for (int piece = 0; piece < kPieces; ++piece) {
      const float4 a[2] = {at(row, piece), at(row + 8, piece)}, b[2] = {at(column, piece), at(column + 1, piece)};
      for (int e = 0; e < 4; ++e)
        part[e] += dot(a[e / 2], b[e % 2]); // pieces from zero: fewer roundings of the long sum
    }
    for (int e = 0; e < 4; ++e)
      product[n][e] += part[e];
  }
  add_stage_squares(squares);
}

// The tile of the tokens that `source` names; leaves the columns' norms in shared memory, for all threads.
template <typename T>
__device__ void cosine_tile(const TileSource<T>& source, int64_t dim, int used, TileShared& shared,
                            TileFragment& tile) {
  constexpr int64_t kDepth = kStageRow / sizeof(T);
  const int steps = static_cast<int>((dim + kDepth - 1) / kDepth);
  TileSums<T> sums;
  for (int ahead = 0; ahead < kStages - 1; ++ahead) {
    if (ahead < steps) source.copy(shared.stages[ahead], ahead * kDepth, dim);
    commit_copies();
  }
  for (int step = 0, at = 0; step < steps; ++step, at = at + 1 == kStages ? 0 : at + 1) {
    wait_for_copies<kStages - 2>();
    __syncthreads(); // this stage is there for all, and all have read the one that is filled next
    const int next = step + kStages - 1;
    if (next < steps) source.copy(shared.stages[at == 0 ? kStages - 1 : at - 1], next * kDepth, dim);
    commit_copies();
    sums.add(shared.stages[at], used);
  }
  wait_for_copies<0>();
  for (int half = 0; half < 2; ++half)
    tile.row_norm[half] = norm_of(quad_reduce<Sum>(sums.row_square[half]));
  const float square = quad_reduce<Sum>(sums.column_square);
  if (threadIdx.x % 4 == 0) shared.column_norm[threadIdx.x / 4] = norm_of(square); // 8 warp + lane / 4
  __syncthreads(); // and the stages are free for the next tile
#pragma unroll
  for (int n = 0; n < kTileColumns / 8; ++n)
    for (int e = 0; e < 4; ++e) { // divided once: two reciprocals would double the rounding
      const float norms = tile.row_norm[e / 2] * shared.column_norm[fragment_column(n) + e % 2];
      tile.cosine[n][e] = norms > 0 ? sums.product[n][e] / norms : 0.0f; // 0, too, for tokens that are not finite
    }
}

// The log weights of a tile's columns, tokens `first` and following of a sample of `count`, to shared memory.
__device__ inline void store_column_weights(const float* prior, int64_t begin, int64_t first, int64_t count,
                                            TileShared& shared) {
  if (threadIdx.x < kTileColumns) {
    const int64_t column = first + threadIdx.x;
    shared.column_weight[threadIdx.x] =
        column < count ? log_weight(prior, begin + column, shared.column_norm[threadIdx.x]) : -MI_PRUNER_INFINITY;
  }
  __syncthreads();
}

// Of a row of the tile (half 0 or 1 of the fragment): max and sum of exp of log weight + (cosine - 1) kappa over the
// columns, to all four lanes.
__device__ inline LogSum normaliser_part(const TileFragment& tile, const float* column_weight, int half, float kappa) {
  LogSum part{-MI_PRUNER_INFINITY, 0};
  const auto exponent = [&](int n, int e) {
    const float weight = column_weight[fragment_column(n) + e];
    return weight == -MI_PRUNER_INFINITY ? weight : log_kernel(tile.cosine[n][2 * half + e], kappa) + weight;
  };
#pragma unroll
  for (int k = 0; k < kTileColumns / 4; ++k)
    part.top = fmaxf(part.top, exponent(k / 2, k % 2));
  part.top = quad_reduce<Largest>(part.top);
  const float shift = part.top == -MI_PRUNER_INFINITY ? 0.0f : part.top;
#pragma unroll
  for (int k = 0; k < kTileColumns / 4; ++k)
    part.total += expf(exponent(k / 2, k % 2) - shift);
  part.total = quad_reduce<Sum>(part.total);
  return part;
}

// Row `half` of the fragment to `to`, a row of cosines whose stride is a multiple of 4: those of `count` tokens, and
// zeros up to the next multiple, since it is read four at a time.
__device__ inline void store_row(const TileFragment& tile, int half, float* to, int64_t first, int64_t count) {
#pragma unroll
  for (int n = 0; n < kTileColumns / 8; ++n) {
    const int64_t column = first + fragment_column(n);
    if (column < (count + 3) / 4 * 4)
      *reinterpret_cast<float2*>(to + column) = {tile.cosine[n][2 * half], tile.cosine[n][2 * half + 1]};
  }
}

} // namespace mi_pruner::cuda

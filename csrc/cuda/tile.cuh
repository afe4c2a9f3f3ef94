// Cosines of 128 (or 64) tokens with 64 others, by one block.
//
// Algorithm: features arrive 128 bytes of a token at a time (64 halves or 32 floats), in a ring of stages filled by
// cp.async, and are multiplied by warps of 32 x 32 cosines, two side by side: halves on the tensor cores, floats by
// fused multiply-adds. Squared norms are summed beside the product from the same registers, and the cosine is the
// product over both norms: no normalised feature is ever written.
//
// Why 32 x 32: a warp reads its rows and its columns from shared memory, which bounds a tile: 64 KB a stage for 8 warps
// of 32 x 32, 80 KB for 16 x 64. The sums of 64 x 32 (48 KB) would not leave registers for two blocks.
//
// Sums: a stage's products are summed from zero and then added to the total in float32. The tensor cores cut off where
// float32 rounds: over a long D that would make cosines of like tokens too small by up to D/16 units; here, by 4. An
// element's sum has one order, whatever its place, the tile and its shape, N or the batch: its bits are the two tokens'
// own. That holds for the norms, too, on either side of a tile.
//
// Floats are not three TF32 products: those are good to about 22 bits, and models on a GPU run in half precision.
//
// Shared memory: 3 x 24 or 5 x 16 KB, rows of 128 bytes whose 16-byte pieces are permuted by the row (no bank
// conflicts).
#pragma once

#include "cuda/weights.cuh"

namespace mi_pruner::cuda {

constexpr int kAcross = kTileColumns / kPatch; // warps side by side
constexpr int tile_threads(int rows) { return rows / kPatch * kAcross * 32; }
constexpr int kTileThreads = tile_threads(kTileRows);
constexpr int kStageRow = 128; // bytes of a token in a stage
constexpr int kPieces = kStageRow / 16;

template <int kRows = kTileRows> struct TileShared {
  // 128 rows: two in flight while one is multiplied, and two blocks of 77 KB fit in the 228 KB of an H100. 64 rows have
  // a multiprocessor to themselves: four in flight, 64 KB, which L2 brings in about the time that one takes to arrive.
  static constexpr int kStages = kRows == kTileRows ? 3 : 5;
  alignas(128) unsigned char stages[kStages][(kRows + kTileColumns) * kStageRow];
  const void* token[kRows + kTileColumns]; // see TileSource
  float row_norm[kRows], column_norm[kTileColumns];
  float column_weight[kTileColumns]; // log weights of the columns, for the users of a tile
  LogSum parts[kAcross][kRows];      // of the rows, over the columns of a warp
};

// A warp's part of the tile begins here.
__device__ inline int patch_row() { return threadIdx.x / 32 / kAcross * kPatch; }
__device__ inline int patch_column() { return threadIdx.x / 32 % kAcross * kPatch; }

// What a thread holds of a tile: 4 rows of 8 columns, as mma.m16n8k16 leaves them.
constexpr int kOwnRows = kPatch / 8, kOwnColumns = kPatch / 4;
struct TileFragment {
  float sums[kOwnRows / 2][kOwnColumns / 2][4];

  __device__ float& at(int r, int c) { return sums[r / 2][c / 2][r % 2 * 2 + c % 2]; }
  __device__ float at(int r, int c) const { return sums[r / 2][c / 2][r % 2 * 2 + c % 2]; }
};

__device__ inline int fragment_row(int r) { return patch_row() + threadIdx.x % 32 / 4 + 8 * r; }
__device__ inline int fragment_column(int c) { return patch_column() + threadIdx.x % 4 * 2 + c / 2 * 8 + c % 2; }

__device__ inline unsigned char* piece_at(unsigned char* stage, int row, int piece) {
  return stage + row * kStageRow + (piece ^ (row & 7)) * 16;
}

// Where the tokens of a tile are, columns last. In shared memory: as registers, the addresses would be too many beside
// the product.
template <typename T, int kRows = kTileRows> struct TileSource {
  static constexpr int kCopies = (kRows + kTileColumns) * kPieces / tile_threads(kRows);
  static constexpr int kApart = tile_threads(kRows) / kPieces; // rows
  static constexpr int kElements = 16 / sizeof(T);
  const void* const* token; // null: absent, zeros
  const T* anywhere;
  bool aligned;

  // row_token(r), column_token(c): a token's number, -1 for none.
  template <typename RowToken, typename ColumnToken>
  __device__ TileSource(const Rows<T>& rows, const RowToken& row_token, const Rows<T>& columns,
                        const ColumnToken& column_token, TileShared<kRows>& shared)
      : token(shared.token), anywhere(rows.base), aligned(rows.aligned && columns.aligned) {
    for (int r = threadIdx.x; r < kRows + kTileColumns; r += blockDim.x) {
      const bool row = r < kRows;
      const int64_t number = row ? row_token(r) : column_token(r - kRows);
      const T* const features = row ? rows.base + number * rows.stride : columns.base + number * columns.stride;
      shared.token[r] = number < 0 ? nullptr : features;
    }
    __syncthreads();
  }

  // The elements from `depth` on, to a stage: piece threadIdx % 8 of rows threadIdx / 8 + kApart k.
  __device__ void copy(unsigned char* stage, int64_t depth, int64_t dim) const {
    const int piece = threadIdx.x % kPieces;
    const int64_t from = depth + piece * kElements, left = dim - from;
    const int count = left <= 0 ? 0 : left < kElements ? static_cast<int>(left) : kElements;
#pragma unroll
    for (int k = 0; k < kCopies; ++k) {
      const int r = threadIdx.x / kPieces + k * kApart;
      unsigned char* to = piece_at(stage, r, piece);
      const T* const features = static_cast<const T*>(token[r]);
      const bool any = features != nullptr && count > 0;
      if (aligned) {
        copy_async(to, any ? features + from : anywhere, any ? count * sizeof(T) : 0);
      } else {
        for (int e = 0; e < kElements; ++e)
          reinterpret_cast<T*>(to)[e] = any && e < count ? features[from + e] : T{};
      }
    }
  }
};

// A thread's squares of the stages so far, or of one: a quarter of each sum. The warps share the tokens among them, 8
// at a time: two of the rows of a warp, and the columns own_columns(k).
template <int kRows> struct TileSquares {
  static constexpr int kDown = kRows / kPatch; // warps one above another
  static constexpr int kColumns = kPatch / 8 / kDown;
  float row[2] = {}, column[kColumns] = {};

  static __device__ int own_row(int half) { return fragment_row(2 * (threadIdx.x / 32 % kAcross) + half); }
  static __device__ bool owns_columns(int group) { return group % kDown == patch_row() / kPatch; }
  static __device__ int own_column(int k) {
    return patch_column() + 8 * (patch_row() / kPatch + k * kDown) + threadIdx.x % 32 / 4;
  }

  __device__ void add(const TileSquares& stage) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      row[half] += stage.row[half];
    for (int k = 0; k < kColumns; ++k)
      column[k] += stage.column[k];
  }

  // The norms to shared memory, before the block's next barrier.
  __device__ void finish(TileShared<kRows>& shared) const {
    const auto finish = [](float square, float& norm) {
      square = quad_reduce<Sum>(square);
      if (threadIdx.x % 4 == 0) norm = norm_of(square);
    };
    for (int half = 0; half < 2; ++half)
      finish(row[half], shared.row_norm[own_row(half)]);
    for (int k = 0; k < kColumns; ++k)
      finish(column[k], shared.column_norm[own_column(k)]);
  }
};

template <typename T> __device__ void add_squares(float& sum, uint32_t pair) {
  const float low = widen(T{static_cast<uint16_t>(pair & 0xffff)}), high = widen(T{static_cast<uint16_t>(pair >> 16)});
  sum = fmaf(high, high, fmaf(low, low, sum));
}

// One step of a stage of halves: the product of 32 rows, `a`, with the warp's columns, and the squares of some of
// these.
template <int kRows, typename T>
__device__ void multiply_columns(unsigned char* stage, int step, const uint32_t (&a)[2][4], TileFragment& part,
                                 TileSquares<kRows>& squares, T) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {
    uint32_t b[4];
    const int row = kRows + patch_column() + 16 * pair + lane % 8 + lane / 16 * 8;
    load_matrices(b, piece_at(stage, row, 2 * step + lane / 8 % 2));
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int n = 2 * pair + side;
      if (squares.owns_columns(n)) {
        add_squares<T>(squares.column[n / squares.kDown], b[2 * side]);
        add_squares<T>(squares.column[n / squares.kDown], b[2 * side + 1]);
      }
#pragma unroll
      for (int m = 0; m < 2; ++m)
        multiply_add(part.sums[m][n], a[m], b[2 * side], b[2 * side + 1], T{});
    }
  }
}

// One stage of halves; kAny: the warp has columns that hold a token, else there is no product.
template <bool kAny, int kRows, typename T>
__device__ void add_stage(unsigned char* stage, TileFragment& product, TileSquares<kRows>& squares, T) {
  const int lane = threadIdx.x % 32;
  TileFragment part{};
  TileSquares<kRows> square;
  // All four would spill: 128 rows have 128 registers a thread, so that two blocks fit.
#pragma unroll(kRows == kTileRows ? 2 : 4)
  for (int step = 0; step < kPieces / 2; ++step) { // 16 halves
    uint32_t a[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m)
      load_matrices(a[m], piece_at(stage, patch_row() + 16 * m + lane % 16, 2 * step + lane / 16));
#pragma unroll
    for (int e = 0; e < 4; ++e)
      add_squares<T>(square.row[e % 2], patch_column() == 0 ? a[0][e] : a[1][e]);
    if constexpr (kAny) multiply_columns(stage, step, a, part, square, T{});
  }
#pragma unroll
  for (int r = 0; r < kOwnRows; ++r)
#pragma unroll
    for (int c = 0; c < kOwnColumns; ++c)
      product.at(r, c) += part.at(r, c);
  squares.add(square);
}

__device__ inline float dot(const float4& a, const float4& b) {
  return fmaf(a.w, b.w, a.z * b.z) + fmaf(a.y, b.y, a.x * b.x);
}

// A stage of floats.
template <int kRows> __device__ void multiply_columns(unsigned char* stage, TileFragment& product) {
  const auto at = [&](int r, int piece) { return *reinterpret_cast<const float4*>(piece_at(stage, r, piece)); };
#pragma unroll
  for (int c = 0; c < kOwnColumns; c += 2) {
    float part[kOwnRows][2] = {};
#pragma unroll 2 // more would hold all of the rows in registers
    for (int piece = 0; piece < kPieces; ++piece) {
      const float4 b[2] = {at(kRows + fragment_column(c), piece), at(kRows + fragment_column(c + 1), piece)};
#pragma unroll
      for (int r = 0; r < kOwnRows; ++r) {
        const float4 a = at(fragment_row(r), piece);
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

template <bool kAny, int kRows>
__device__ void add_stage(unsigned char* stage, TileFragment& product, TileSquares<kRows>& squares, float) {
  const auto add = [&](float& sum, int r, int piece) {
    const float4 x = *reinterpret_cast<const float4*>(piece_at(stage, r, piece));
    sum += dot(x, x);
  };
  TileSquares<kRows> square;
#pragma unroll
  for (int piece = threadIdx.x % 4; piece < kPieces; piece += 4) { // lanes share a row's pieces among them
    for (int half = 0; half < 2; ++half)
      add(square.row[half], square.own_row(half), piece);
    for (int k = 0; k < square.kColumns; ++k)
      add(square.column[k], kRows + square.own_column(k), piece);
  }
  squares.add(square);
  if constexpr (kAny) multiply_columns<kRows>(stage, product);
}

// The tile of the tokens that `source` names; the columns from `used` on hold none. Leaves the norms in shared memory,
// for all threads.
template <typename T, int kRows>
__device__ void cosine_tile(const TileSource<T, kRows>& source, int64_t dim, int used, TileShared<kRows>& shared,
                            TileFragment& tile) {
  constexpr int64_t kDepth = kStageRow / sizeof(T);
  constexpr int kStages = TileShared<kRows>::kStages;
  const int steps = static_cast<int>((dim + kDepth - 1) / kDepth);
  tile = {};
  TileSquares<kRows> squares;
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
    if (patch_column() < used)
      add_stage<true>(shared.stages[at], tile, squares, T{});
    else
      add_stage<false>(shared.stages[at], tile, squares, T{});
  }
  wait_for_copies<0>();
  squares.finish(shared);
  __syncthreads(); // and the stages are free for the next tile
#pragma unroll
  for (int r = 0; r < kOwnRows; ++r)
#pragma unroll
    for (int c = 0; c < kOwnColumns; ++c) { // divided once: two reciprocals would double the rounding
      const float norms = shared.row_norm[fragment_row(r)] * shared.column_norm[fragment_column(c)];
      tile.at(r, c) = norms > 0 ? tile.at(r, c) / norms : 0.0f; // 0, too, for tokens that are not finite
    }
}

// The log weights of a tile's columns, tokens `first` and following of a sample of `count`, to shared memory.
template <int kRows>
__device__ void store_column_weights(const float* prior, int64_t begin, int64_t first, int64_t count,
                                     TileShared<kRows>& shared) {
  if (threadIdx.x < kTileColumns) {
    const int64_t column = first + threadIdx.x;
    shared.column_weight[threadIdx.x] =
        column < count ? log_weight(prior, begin + column, shared.column_norm[threadIdx.x]) : -MI_PRUNER_INFINITY;
  }
  __syncthreads();
}

// f(row, part), by a thread each: the part of the row's normaliser that the tile's columns are: max and sum of exp of
// log weight + (cosine - 1) kappa.
template <int kRows, typename F>
__device__ void for_each_part(const TileFragment& tile, float kappa, TileShared<kRows>& shared, const F& f) {
#pragma unroll
  for (int r = 0; r < kOwnRows; ++r) {
    const auto exponent = [&](int c) {
      const float weight = shared.column_weight[fragment_column(c)];
      return weight == -MI_PRUNER_INFINITY ? weight : log_kernel(tile.at(r, c), kappa) + weight;
    };
    LogSum part{-MI_PRUNER_INFINITY, 0};
#pragma unroll
    for (int c = 0; c < kOwnColumns; ++c)
      part.top = fmaxf(part.top, exponent(c));
    part.top = quad_reduce<Largest>(part.top);
#pragma unroll
    for (int c = 0; c < kOwnColumns; ++c)
      part.total += expf(exponent(c) - shift_of(part.top));
    part.total = quad_reduce<Sum>(part.total);
    if (threadIdx.x % 4 == 0) shared.parts[patch_column() / kPatch][fragment_row(r)] = part;
  }
  __syncthreads();
  if (threadIdx.x >= kRows) return;
  const int row = static_cast<int>(threadIdx.x);
  const LogSum left = shared.parts[0][row], right = shared.parts[1][row];
  const float top = fmaxf(left.top, right.top), shift = shift_of(top);
  f(row, LogSum{top, left.total * expf(left.top - shift) + right.total * expf(right.top - shift)});
}

// Row r of the fragment to `to`, a row of cosines whose stride is a multiple of 4: those of `count` tokens, and zeros
// up to the next multiple, since it is read four at a time.
__device__ inline void store_row(const TileFragment& tile, int r, float* to, int64_t first, int64_t count) {
#pragma unroll
  for (int c = 0; c < kOwnColumns; c += 2) {
    const int64_t column = first + fragment_column(c);
    if (column < (count + 3) / 4 * 4) *reinterpret_cast<float2*>(to + column) = {tile.at(r, c), tile.at(r, c + 1)};
  }
}

} // namespace mi_pruner::cuda

// Cosines of 128 (or 64) tokens with 64 others, by one block, or by two.
//
// Algorithm: features arrive 128 bytes of a token at a time (64 halves or 32 floats), in a ring of stages filled by
// cp.async, and are multiplied by eight warps of 32 x 32 cosines (or 32 x 16): halves on the tensor cores, floats by
// fused multiply-adds. Squared norms are summed beside the product from the same registers, those of halves as the
// diagonal of a product of tokens with themselves, and the cosine is the product over both norms: no normalised feature
// is ever written.
//
// Why 32 x 32: a warp reads its rows and its columns from shared memory, which bounds a tile: 64 KB a stage for 8 warps
// of 32 x 32, 80 KB for 16 x 64. The sums of 64 x 32 (48 KB) would not leave registers for two blocks. A tile of 64
// rows is bound by what its few warps wait for: eight of 32 x 16 wait side by side.
//
// Sums: a stage's products are summed from zero and then added to the total of a half of D in float32; the halves are
// added last. The tensor cores cut off where float32 rounds: over a long D that would make cosines of like tokens too
// small by up to D/16 units; here, by 4. An element's sum has one order, whatever its place, the tile, its shape and
// the blocks that share it, N or the batch: its bits are the two tokens' own. That holds for the norms, too, and on
// either side of a tile: products are exact, and a matrix instruction sums them in one order of the features, whichever
// factor a token is of (seen on an H100).
//
// Floats are not three TF32 products: those are good to about 22 bits, and models on a GPU run in half precision.
//
// Shared memory: 3 x 24 or 5 x 16 KB, rows of 128 bytes whose 16-byte pieces are permuted by the row (no bank
// conflicts); after the product, the sums.
#pragma once

#include "cuda/weights.cuh"

namespace mi_pruner::cuda {

constexpr int kTileThreads = 256;
constexpr int kStageRow = 128; // bytes of a token in a stage
constexpr int kPieces = kStageRow / 16;
constexpr int kParts = kPieces / 2; // of a stage: 16 halves

// A sum over D is that of the first half of its stages and that of the others, so that two blocks can share it where
// there are few tiles; a short one has no second half. Everywhere, as no bit depends on who sums.
constexpr int kLongSum = 16;
constexpr int first_half(int stages) { return stages < kLongSum ? stages : (stages + 1) / 2; }

template <int kRows = kTileRows> struct TileShared {
  // 128 rows: two in flight while one is multiplied, and two blocks of 76 KB fit in the 228 KB of an H100. 64 rows have
  // a multiprocessor almost to themselves: four in flight, 64 KB, which L2 brings in about the time of one.
  static constexpr int kStages = kRows == kTileRows ? 3 : 5;
  alignas(128) unsigned char stages[kStages][(kRows + kTileColumns) * kStageRow];
  // Of the rows, then of the columns.
  const void* token[kRows + kTileColumns]; // see TileSource
  float square[kRows + kTileColumns];      // of one half of the sum
  float norm[kRows + kTileColumns];
  float weight[kRows + kTileColumns]; // log weights, for the users of a tile

  // Where the stages were: the sums, and what is made of them. A pitch that puts the 4 rows that a warp
  // reads, or writes, at once into different banks.
  static constexpr int kPitch = kTileColumns + 8;
  __device__ float* row(int r) { return reinterpret_cast<float*>(stages) + r * kPitch; }
  static_assert(kRows * kPitch * sizeof(float) <= sizeof stages);
};

// What a warp has of a tile: 32 rows, and as many columns as make 8 warps of all. Warps of the same columns are
// neighbours, so that they are spread over all four schedulers.
constexpr int kWarpRows = 32;
template <int kRows> struct WarpPart {
  static constexpr int kDown = kRows / kWarpRows, kAcross = kTileThreads / 32 / kDown,
                       kColumns = kTileColumns / kAcross;

  static __device__ int down() { return threadIdx.x / 32 % kDown; }
  static __device__ int across() { return threadIdx.x / 32 / kDown; }
  static __device__ int first_column() { return across() * kColumns; }
};

// What a thread holds of it: 4 rows of 8 (or 4) columns, as mma.m16n8k16 leaves them. Which 8 rows, and which 8
// columns, a warp takes first depends on its place: those whose norms it sums (of a tile of 128 rows, 16 rows).
template <int kRows> struct TileFragment {
  static constexpr int kOwnRows = kWarpRows / 8, kOwnColumns = WarpPart<kRows>::kColumns / 4;
  float sums[kOwnRows / 2][kOwnColumns / 2][4];

  __device__ float& at(int r, int c) { return sums[r / 2][c / 2][r % 2 * 2 + c % 2]; }
  __device__ float at(int r, int c) const { return sums[r / 2][c / 2][r % 2 * 2 + c % 2]; }

  __device__ void operator+=(const TileFragment& other) {
#pragma unroll
    for (int r = 0; r < kOwnRows; ++r)
#pragma unroll
      for (int c = 0; c < kOwnColumns; ++c)
        at(r, c) += other.at(r, c);
  }

  static constexpr int kNormRows = kWarpRows / 8 / WarpPart<kRows>::kAcross; // 8 rows each: of them the warp sums norms
  static __device__ int row(int r) {
    return WarpPart<kRows>::down() * kWarpRows + threadIdx.x % 32 / 4 + 8 * (r ^ kNormRows * WarpPart<kRows>::across());
  }
  static __device__ int column(int c) {
    return WarpPart<kRows>::first_column() + threadIdx.x % 4 * 2 + 8 * (c / 2 ^ WarpPart<kRows>::down()) + c % 2;
  }
};

__device__ inline int piece_offset(int row, int piece) { return row * kStageRow + (piece ^ (row & 7)) * 16; }

// Where the tokens of a tile are, columns last: for all threads in shared memory (null: none), a thread's own in
// registers. In the place of a token that is not there a stage has anything: its cosines mean nothing.
template <typename T, int kRows = kTileRows> struct TileSource {
  static constexpr int kCopies = (kRows + kTileColumns) * kPieces / kTileThreads;
  static constexpr int kApart = kTileThreads / kPieces; // rows
  static constexpr int kElements = 16 / sizeof(T), kDepth = kPieces * kElements;
  static_assert(kApart % 8 == 0); // a thread's pieces have one place in their rows
  const T* const* token;
  // The next stage's piece threadIdx % 8 of rows threadIdx / 8 + kApart k, in pieces after that of the first row or
  // column: not as addresses, which would take twice the registers.
  static constexpr int kRowCopies = kRows / kApart;
  const T *row, *column;
  int after[kCopies];
  int place;            // of the first piece, in a stage
  unsigned present = 0; // a bit each
  bool aligned;

  static __host__ __device__ int stages(int64_t dim) { return static_cast<int>((dim + kDepth - 1) / kDepth); }

  // row_token(r), column_token(c): a token's number, -1 for none. Stages from `first_stage` on.
  template <typename RowToken, typename ColumnToken>
  __device__ TileSource(const Rows<T>& rows, const RowToken& row_token, const Rows<T>& columns,
                        const ColumnToken& column_token, int first_stage, TileShared<kRows>& shared)
      : token(reinterpret_cast<const T* const*>(shared.token)), aligned(rows.aligned && columns.aligned) {
    for (int r = threadIdx.x; r < kRows + kTileColumns; r += blockDim.x) {
      const bool row = r < kRows;
      const int64_t number = row ? row_token(r) : column_token(r - kRows);
      const T* const features = row ? rows.base + number * rows.stride : columns.base + number * columns.stride;
      shared.token[r] = number < 0 ? nullptr : features;
    }
    __syncthreads();
    const auto start = [&](int from, int to, const T*& first) {
      first = nullptr; // of those that are there
#pragma unroll
      for (int k = from; k < to; ++k) {
        const T* const features = token[threadIdx.x / kPieces + k * kApart];
        after[k] = 0;
        if (features == nullptr) continue;
        if (first == nullptr) first = features;
        after[k] = static_cast<int>((features - first) / kElements);
        present |= 1u << k;
      }
      if (first == nullptr) first = rows.base;
      first += threadIdx.x % kPieces * kElements + int64_t{first_stage} * kDepth;
    };
    start(0, kRowCopies, row);
    start(kRowCopies, kCopies, column);
    place = piece_offset(threadIdx.x / kPieces, threadIdx.x % kPieces);
    keep(place);
  }

  // A part, of kParts, of the next stage, of kDepth elements of aligned rows.
  __device__ void copy_part(unsigned char* stage, int part) {
    const SharedAddress to = shared_address(stage) + place;
#pragma unroll
    for (int k = 0; k < kCopies; ++k)
      if (k * kParts / kCopies == part && (present >> k & 1) != 0)
        copy_async(to + k * kApart * kStageRow, (k < kRowCopies ? row : column) + int64_t{after[k]} * kElements);
    if (part < kParts - 1) return;
    row += kDepth;
    column += kDepth;
  }

  // Any stage: the elements from `depth` on, and zeros from `dim` on.
  __device__ void copy(unsigned char* stage, int64_t depth, int64_t dim) const {
    const int piece = threadIdx.x % kPieces;
    const int64_t from = depth + piece * kElements, left = dim - from;
    const int count = left <= 0 ? 0 : left < kElements ? static_cast<int>(left) : kElements;
#pragma unroll 1
    for (int r = threadIdx.x / kPieces; r < kRows + kTileColumns; r += kApart) {
      unsigned char* to = stage + piece_offset(r, piece);
      const T* const features = token[r];
      if (features == nullptr) continue;
      if (count == kElements && aligned) {
        copy_async(shared_address(to), features + from);
      } else {
#pragma unroll 1
        for (int e = 0; e < kElements; ++e)
          reinterpret_cast<T*>(to)[e] = e < count ? features[from + e] : T{};
      }
    }
  }
};

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

// Stages that a tile sums up: numbers [first, middle), and then [middle, last).
struct Stages {
  int first, middle, last;
};

// The sums of a tile over its stages, kAhead of them on their way while one is multiplied. `any`: as kAny of add_stage.
// end_half(): in the middle, if any follow.
template <typename T, int kRows, typename EndHalf>
__device__ void add_stages(TileSource<T, kRows>& source, int64_t dim, const Stages& stages, bool any,
                           TileShared<kRows>& shared, TileFragment<kRows>& tile, TileSquares<kRows>& squares,
                           const EndHalf& end_half) {
  constexpr int kDepth = TileSource<T, kRows>::kDepth, kStages = TileShared<kRows>::kStages, kAhead = kStages - 1;
  const int whole = !source.aligned ? 0 : dim / kDepth < stages.last ? static_cast<int>(dim / kDepth) : stages.last;
  const MatrixPlaces<kRows> places;
#pragma unroll 1
  for (int ahead = 0; ahead < kAhead; ++ahead) {
    const int step = stages.first + ahead;
    if (step < whole)
      for (int part = 0; part < kParts; ++part)
        source.copy_part(shared.stages[ahead], part);
    else if (step < stages.last)
      source.copy(shared.stages[ahead], int64_t{step} * kDepth, dim);
    commit_copies();
  }
  int at = 0, free = kAhead;
  const auto add = [&](const auto& between) {
    wait_for_copies<kAhead - 1>();
    __syncthreads(); // this stage is there for all, and all have read the one that is filled next
    if (any)
      add_stage<true>(shared.stages[at], places, tile, squares, between, T{});
    else
      add_stage<false>(shared.stages[at], places, tile, squares, between, T{});
    commit_copies();
    free = at;
    at = at + 1 == kStages ? 0 : at + 1;
  };
  for (int step = stages.first, end; step < stages.last; step = end) {
    if (step > stages.first) end_half();
    end = step < stages.middle ? stages.middle : stages.last;
    const int filled = whole - kAhead < end ? whole - kAhead : end;
#pragma unroll 1
    for (int left = filled - step; left > 0; --left)
      add([&](int part) { source.copy_part(shared.stages[free], part); });
#pragma unroll 1
    for (step = step < filled ? filled : step; step < end; ++step)
      add([&](int part) {
        if (part == 0 && step + kAhead < stages.last)
          source.copy(shared.stages[free], int64_t{step + kAhead} * kDepth, dim);
      });
  }
  wait_for_copies<0>();
}

// The sums of a tile, or of a half of them, to shared memory.
template <int kRows> __device__ void store_sums(const TileFragment<kRows>& tile, TileShared<kRows>& shared) {
#pragma unroll
  for (int r = 0; r < tile.kOwnRows; ++r) {
    float* const row = shared.row(tile.row(r));
#pragma unroll
    for (int c = 0; c < tile.kOwnColumns; c += 2)
      *reinterpret_cast<float2*>(row + tile.column(c)) = {tile.at(r, c), tile.at(r, c + 1)};
  }
}

// The tile of the tokens that `source` names; the columns from `used` on hold none. Leaves its sums and norms in shared
// memory, for all threads.
template <typename T, int kRows>
__device__ void multiply_tile(TileSource<T, kRows>& source, int64_t dim, int used, TileShared<kRows>& shared) {
  constexpr bool kDiagonal = sizeof(T) == 2;
  constexpr int kQuads = sizeof(TileFragment<kRows>) / sizeof(float4);
  const int stages = source.stages(dim), half = first_half(stages);
  const bool any = WarpPart<kRows>::first_column() < used;
  TileFragment<kRows> tile{};
  TileSquares<kRows> squares;
  float4 first[kQuads], sums[kQuads]; // the first half: in local memory, as registers are short
  const int zero = unknown_zero();
  add_stages(source, dim, {0, half, stages}, any, shared, tile, squares, [&] {
    if (any) {
      memcpy(sums, &tile, sizeof tile);
#pragma unroll
      for (int k = 0; k < kQuads; ++k)
        first[k + zero] = sums[k];
      tile = {};
    }
    squares.template finish<kDiagonal>();
    squares.template for_each<kDiagonal>([&](float square, int token) { shared.square[token] = square; });
    squares = {};
  });
  if (any && half < stages) {
    memcpy(sums, &tile, sizeof tile);
#pragma unroll
    for (int k = 0; k < kQuads; ++k) {
      const float4 sum = first[k + zero];
      sums[k] = {sum.x + sums[k].x, sum.y + sums[k].y, sum.z + sums[k].z, sum.w + sums[k].w};
    }
    memcpy(&tile, sums, sizeof tile);
  }
  __syncthreads(); // all have read the last stage
  store_sums(tile, shared);
  squares.template finish<kDiagonal>();
  squares.template for_each<kDiagonal>([&](float square, int token) {
    shared.norm[token] = norm_of(half < stages ? shared.square[token] + square : square);
  });
  __syncthreads();
}

// The same by a cluster of two blocks, which sum a half each. Leaves half of the sums in the shared memory of each, and
// the norms in that of both.
template <typename T, int kRows>
__device__ void multiply_half(TileSource<T, kRows>& source, int64_t dim, int used, unsigned rank,
                              TileShared<kRows>& shared) {
  constexpr bool kDiagonal = sizeof(T) == 2;
  const int stages = source.stages(dim), half = first_half(stages);
  TileFragment<kRows> tile{};
  TileSquares<kRows> squares;
  add_stages(source, dim, rank == 0 ? Stages{0, half, half} : Stages{half, stages, stages},
             WarpPart<kRows>::first_column() < used, shared, tile, squares, [] {});
  __syncthreads(); // all have read the last stage
  store_sums(tile, shared);
  squares.template finish<kDiagonal>();
  squares.template for_each<kDiagonal>([&](float square, int token) { shared.square[token] = square; });
  cluster_barrier();
  for (int token = threadIdx.x; token < kRows + kTileColumns; token += blockDim.x)
    shared.norm[token] = norm_of(shared.square[token] + load_from(shared.square + token, 1 - rank));
  __syncthreads();
}

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

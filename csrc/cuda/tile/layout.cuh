// What lies where in a tile: in shared memory, among the warps, in a thread's registers.
#pragma once

#include "cuda/base/weights.cuh"

namespace mi_pruner::cuda {

constexpr int kTileThreads = 256;
constexpr int kStageRow = 128; // bytes of a token in a stage
constexpr int kPieces = kStageRow / 16;
constexpr int kSteps = kPieces / 2; // of a stage: 16 halves each

// A sum over D is that of so many shares of its stages, added in order, so that the blocks of a cluster can take one
// each where there are few tiles. Everywhere, as no bit depends on who sums.
constexpr int kShares = 8;
constexpr int share_of(int stages) { return (stages + kShares - 1) / kShares; }

// Of a D, in stages.
template <typename T> constexpr int kDepth = kStageRow / static_cast<int>(sizeof(T));
template <typename T> __host__ __device__ constexpr int stages_of(int64_t dim) {
  return static_cast<int>((dim + kDepth<T> - 1) / kDepth<T>);
}

// Whether a cluster may share a tile: two stages, at the least, for each of its blocks.
template <typename T> constexpr bool long_enough(int64_t dim) { return stages_of<T>(dim) >= 2 * kShares; }

// 128 rows, and 64 columns or 128 (by groups alone), multiplied warp by warp, or by groups of four warps (halves, on
// the GPUs that have these: kHasGroups). By a block, or a share each by the blocks of a cluster. kNormsGiven: norms are
// not summed beside the products, as never by groups (but of text beside wide tiles). kGathered: columns are tokens
// from anywhere; else, as rows always, neighbours.
template <int kTheColumns, int kTheBlocks, bool kByGroups = kTheColumns == kWideColumns, bool kGivenNorms = kByGroups,
          bool kGatheredColumns = false>
struct TileShape {
  static constexpr int kBlocks = kTheBlocks, kRows = kTileRows, kColumns = kTheColumns, kTokens = kRows + kColumns;
  static constexpr bool kWide = kColumns == kWideColumns, kGroups = kByGroups, kNormsGiven = kGivenNorms,
                        kGathered = kGatheredColumns;
  static_assert(kWide ? kGroups : kColumns == kTileColumns);
  static_assert(kNormsGiven || !kGroups);
  static_assert(kBlocks == 1 || kBlocks == kShares);

  // Columns of text that a wide tile may have beside its own, in the place of columns that it has as rows.
  static constexpr int kBeside = kWide ? kTileColumns : 0;

  // Blocks of a multiprocessor, of which one has 228 KB on an H100: two of warps, by their registers and memory, and
  // one of groups, whose sums or kernels leave room for no more. And stages in shared memory: as many as have room, up
  // to six.
  static constexpr int kResident = kGroups ? 1 : 2, kStages = kResident == 1 ? 6 : 3;
  // Of the products of groups so many are in progress while the next stage is awaited; their stages are not free yet.
  static constexpr int kPending = kGroups ? 1 : 0, kAhead = kStages - 1 - kPending;

  // The warps: kDown x kAcross. Those of the same columns are neighbours, so that they are spread over all four
  // schedulers.
  static constexpr int kWarpRows = kGroups ? 16 : 32, kDown = kRows / kWarpRows, kAcross = kTileThreads / 32 / kDown,
                       kWarpColumns = kColumns / kAcross;
  static __device__ int down() { return threadIdx.x / 32 % kDown; }
  static __device__ int across() { return threadIdx.x / 32 / kDown; }
  static __device__ int first_column() { return across() * kWarpColumns; }

  // A thread's share of a warp's: the rows and columns of fragments of 8 x 8, as matrix instructions leave them. The
  // warps share among them the tokens whose norms they sum, 8 at a time: those that a warp takes first.
  static constexpr int kRowGroups = kWarpRows / 8, kColumnGroups = kWarpColumns / 8,
                       kNormRows = kNormsGiven ? 0 : kRowGroups / kAcross,
                       kNormColumns = kNormsGiven ? 0 : kColumnGroups / kDown;
  static __device__ int row_group(int r) { return down() * kWarpRows + 8 * (r ^ kNormRows * across()); }
  static __device__ int norm_columns(int c) { return first_column() + 8 * (c ^ kNormColumns * down()); }
  static __device__ int column_group(int c) { return kGroups ? 8 * c : norm_columns(c); }
  static __device__ int row(int r) { return row_group(r) + threadIdx.x % 32 / 4; }
  static __device__ int column(int c) { return column_group(c / 2) + threadIdx.x % 4 * 2 + c % 2; }
};
using BlockTile = TileShape<kTileColumns, 1>;

// Whether the code has instructions for the tile: elsewhere a kernel has no body, and says so by its launch bounds.
template <typename Tile> constexpr bool runs_here() {
  return (Tile::kBlocks == 1 || kHasClusters) && (!Tile::kGroups || kHasGroups);
}

// The sums of products with so many columns, and what is made of them, in shared memory. Four of a row lie together;
// which place they have in it depends on the row, so that reading along rows, reading four rows of a column, and
// writing fragments all spread over the banks.
template <int kColumns> struct Sums {
  float* start;

  __device__ float* four(int row, int quad) const {
    return start + row * kColumns + (quad ^ (row / 4 + 2 * row) % 8) * 4;
  }
  __device__ float* at(int row, int column) const { return four(row, column / 4) + column % 4; }
  // Four of a column, from this row on.
  __device__ float4 four_down(int row, int column) const {
    return {*at(row, column), *at(row + 1, column), *at(row + 2, column), *at(row + 3, column)};
  }
};

template <typename Tile> struct TileShared {
  alignas(1024) unsigned char stages[Tile::kStages][Tile::kTokens * kStageRow];
  // Of the rows, then of the columns.
  const void* token[Tile::kTokens];         // see TileSource
  float square[Tile::kTokens];              // of a share of the sum
  alignas(16) float norm[Tile::kTokens];    // read four at a time
  alignas(16) float inverse[Tile::kTokens]; // of the norm
  alignas(16) float weight[Tile::kTokens];  // log weights, for the users of a tile

  __device__ void set_norm(int token, float value) {
    norm[token] = value;
    inverse[token] = 1 / value;
  }

  // Where the stages were: those of the tile, and of the text beside it.
  __device__ Sums<Tile::kColumns> sums() { return {reinterpret_cast<float*>(stages)}; }
  __device__ Sums<kTileColumns> beside() { return {sums().start + Tile::kRows * Tile::kColumns}; }
  static constexpr int kSums = Tile::kRows * (Tile::kColumns + Tile::kBeside);
  static_assert(kSums * sizeof(float) <= sizeof stages);
};

// The sums of a thread: so many rows and columns of 8.
template <int kRowGroups, int kColumnGroups> struct Fragment {
  static constexpr int kOwnRows = kRowGroups, kOwnColumns = 2 * kColumnGroups;
  float sums[kOwnRows / 2][kColumnGroups][4];

  __device__ float& at(int r, int c) { return sums[r / 2][c / 2][r % 2 * 2 + c % 2]; }
  __device__ float at(int r, int c) const { return sums[r / 2][c / 2][r % 2 * 2 + c % 2]; }

  __device__ void operator+=(const Fragment& other) {
#pragma unroll
    for (int r = 0; r < kOwnRows; ++r)
#pragma unroll
      for (int c = 0; c < kOwnColumns; ++c)
        at(r, c) += other.at(r, c);
  }
};
template <typename Tile> using TileFragment = Fragment<Tile::kRowGroups, Tile::kColumnGroups>;
template <typename Tile> using BesideFragment = Fragment<Tile::kRowGroups, kTileColumns / 8>;

__device__ inline int piece_offset(int row, int piece) { return row * kStageRow + (piece ^ (row & 7)) * 16; }

} // namespace mi_pruner::cuda

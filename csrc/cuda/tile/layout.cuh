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

// 128 rows, and the columns. By a block: all shares of 64 columns. By a cluster: 128 columns, a share a block.
template <int kTheBlocks> struct TileShape {
  static constexpr int kBlocks = kTheBlocks, kRows = kTileRows,
                       kColumns = kBlocks == 1 ? kTileColumns : kSharedTileColumns, kTokens = kRows + kColumns;
  static_assert(kBlocks == 1 || kBlocks == kShares);
  // Stages in shared memory: two in flight while one is multiplied. Two blocks of 76 KB, or of 104, fit in the 228 KB
  // of an H100.
  static constexpr int kStages = 3;

  // The warps: kDown x kAcross. Those of the same columns are neighbours, so that they are spread over all four
  // schedulers.
  static constexpr int kWarpRows = kBlocks == 1 ? 32 : 64, kWarpColumns = 32, kDown = kRows / kWarpRows,
                       kAcross = kColumns / kWarpColumns;
  static_assert(kDown * kAcross == kTileThreads / 32);
  static __device__ int down() { return threadIdx.x / 32 % kDown; }
  static __device__ int across() { return threadIdx.x / 32 / kDown; }
  static __device__ int first_column() { return across() * kWarpColumns; }

  // A thread's share of a warp's: 8 rows of 8 columns (or 4), as mma.m16n8k16 leaves them. Rows and columns of a warp
  // come in groups of 8; which of them it takes first depends on its place: those whose norms it sums.
  static constexpr int kRowGroups = kWarpRows / 8, kColumnGroups = kWarpColumns / 8, kNormRows = kRowGroups / kAcross,
                       kNormColumns = kColumnGroups / kDown;
  static __device__ int row_group(int r) { return down() * kWarpRows + 8 * (r ^ kNormRows * across()); }
  static __device__ int column_group(int c) { return first_column() + 8 * (c ^ kNormColumns * down()); }
  static __device__ int row(int r) { return row_group(r) + threadIdx.x % 32 / 4; }
  static __device__ int column(int c) { return column_group(c / 2) + threadIdx.x % 4 * 2 + c % 2; }
};
using BlockTile = TileShape<1>;
using ClusterTile = TileShape<kShares>;

template <typename Tile> struct TileShared {
  alignas(128) unsigned char stages[Tile::kStages][Tile::kTokens * kStageRow];
  // Of the rows, then of the columns.
  const void* token[Tile::kTokens];        // see TileSource
  float square[Tile::kTokens];             // of a share of the sum
  alignas(16) float norm[Tile::kTokens];   // read four at a time
  alignas(16) float weight[Tile::kTokens]; // log weights, for the users of a tile

  // Where the stages were: the sums, and what is made of them. Four of a row lie together; which place they have in
  // it depends on the row, so that reading along rows, reading four rows of a column, and writing fragments all spread
  // over the banks.
  __device__ float* four(int row, int quad) {
    return reinterpret_cast<float*>(stages) + row * Tile::kColumns + (quad ^ (row / 4 + 2 * row) % 8) * 4;
  }
  __device__ float* sum(int row, int column) { return four(row, column / 4) + column % 4; }
  static_assert(Tile::kRows * Tile::kColumns * sizeof(float) <= sizeof stages);
};

// The sums of a thread.
template <typename Tile> struct TileFragment {
  static constexpr int kOwnRows = Tile::kRowGroups, kOwnColumns = 2 * Tile::kColumnGroups;
  float sums[kOwnRows / 2][Tile::kColumnGroups][4];

  __device__ float& at(int r, int c) { return sums[r / 2][c / 2][r % 2 * 2 + c % 2]; }
  __device__ float at(int r, int c) const { return sums[r / 2][c / 2][r % 2 * 2 + c % 2]; }

  __device__ void operator+=(const TileFragment& other) {
#pragma unroll
    for (int r = 0; r < kOwnRows; ++r)
#pragma unroll
      for (int c = 0; c < kOwnColumns; ++c)
        at(r, c) += other.at(r, c);
  }
};

__device__ inline int piece_offset(int row, int piece) { return row * kStageRow + (piece ^ (row & 7)) * 16; }

} // namespace mi_pruner::cuda

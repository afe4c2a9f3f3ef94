// What lies where in a tile: in shared memory, among the warps, in a thread's registers.
#pragma once

#include "cuda/base/weights.cuh"

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

} // namespace mi_pruner::cuda

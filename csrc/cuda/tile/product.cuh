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

#include "cuda/tile/source.cuh"
#include "cuda/tile/stage.cuh"

namespace mi_pruner::cuda {

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

} // namespace mi_pruner::cuda

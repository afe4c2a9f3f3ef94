// Cosines of 128 tokens with 64 others or, of halves by groups of warps, with 64 or 128; by a block, or by a cluster of
// eight.
//
// Algorithm: features arrive 128 bytes of a token at a time (64 halves or 32 floats), in a ring of stages filled by
// cp.async, and are multiplied by eight warps: halves on the tensor cores, 32 x 32 cosines a warp or, of 64 rows with
// all columns, a group of four; floats by fused multiply-adds. Squared norms are summed beside the product where they
// are not known yet, those of halves as the diagonal of a product of tokens with themselves (beside 128 columns of the
// text's alone: those of visual tokens are among the products), and the cosine is the product over both norms: no
// normalised feature is ever written. Columns that are rows of the tile, too (on the diagonal), are read from these.
//
// Why 32 x 32: a warp reads its rows and its columns from shared memory, which bounds a tile: 64 KB a stage for 8 warps
// of 32 x 32, 80 KB for 16 x 64. The sums of 64 x 32 (48 KB) would not leave registers for two blocks. Groups read 48
// KB for twice as many cosines (32 for as many), and hold no factors in registers.
//
// Sums: D is cut into eight shares of whole stages. Each is summed from zero, by the matrix instructions themselves,
// and added to the others in float32, in order. The tensor cores cut off where float32 rounds: over all of a long D
// that would make cosines of like tokens too small by up to D/16 units; here, by an eighth of it, and norms with them.
// An element's sum has one order, whatever its place, the tile, its shape and the blocks that share it, N or the batch:
// its bits are the two tokens' own. That holds for the norms, too, and on either side of a tile: products are exact,
// and a matrix instruction sums them in one order of the features, whichever factor a token is of (seen on an H100).
//
// Floats are not three TF32 products: those are good to about 22 bits, and models on a GPU run in half precision.
//
// Shared memory: three stages of 24 KB, or of tiles of groups six of 24 or 32, rows of 128 bytes whose 16-byte pieces
// are permuted by the row (no bank conflicts); after the product, the sums.
#pragma once

#include "cuda/tile/source.cuh"
#include "cuda/tile/stage.cuh"

namespace mi_pruner::cuda {

// The sums of a tile over the stages [first, last), kAhead of them on their way while one is multiplied. `columns_at`:
// the first column's place among the tile's tokens. `any`: of `Share::add`. end_share(share): at the end of each
// `length` of them.
template <bool kBeside, typename T, typename Tile, typename EndShare>
__device__ void add_stages(TileSource<T, Tile>& source, int64_t dim, int first, int last, int length, int columns_at,
                           bool any, TileShared<Tile>& shared, const EndShare& end_share) {
  constexpr int kStages = Tile::kStages, kAhead = Tile::kAhead;
  const auto next = [](int stage) { return stage + 1 == kStages ? 0 : stage + 1; };
  const int64_t all = dim / kDepth<T>;
  const int whole = !source.aligned ? 0 : all < last ? static_cast<int>(all) : last;
  const MatrixPlaces<Tile> places(columns_at);
  if (whole < first + kAhead) __syncthreads(); // where the tokens are is there for all
#pragma unroll 1
  for (int ahead = 0; ahead < kAhead; ++ahead) {
    const int stage = first + ahead;
    if (stage < whole)
      for (int step = 0; step < kSteps; ++step)
        source.copy_step(shared.stages[ahead], step);
    else if (stage < last)
      source.copy(shared.stages[ahead], int64_t{stage} * kDepth<T>, dim);
    commit_copies();
  }
  int at = 0, free = kAhead;
  for (int stage = first, end; stage < last; stage = end) {
    Share<T, Tile, kBeside> share;
    const auto add = [&](const auto& between) {
      wait_for_copies<kAhead - 1>();
      if constexpr (Tile::kGroups) show_copies();
      __syncthreads(); // this stage is there for all, and all have read the one that is filled next
      share.add(shared.stages[at], places, columns_at, any, between);
      commit_copies();
      free = next(free);
      at = next(at);
    };
    end = stage + length < last ? stage + length : last;
    const int filled = whole - kAhead < end ? whole - kAhead : end;
#pragma unroll 1
    for (int left = filled - stage; left > 0; --left)
      add([&](int step) { source.copy_step(shared.stages[free], step); });
#pragma unroll 1
    for (stage = stage < filled ? filled : stage; stage < end; ++stage)
      add([&](int step) {
        if (step == 0 && stage + kAhead < last)
          source.copy(shared.stages[free], int64_t{stage + kAhead} * kDepth<T>, dim);
      });
    share.finish();
    end_share(share);
  }
  wait_for_copies<0>();
  __syncthreads(); // all have read the last stage
}

// A thread's sums to shared memory.
template <typename Tile, int kRowGroups, int kColumnGroups>
__device__ void store_sums(const Fragment<kRowGroups, kColumnGroups>& own,
                           const Sums<8 * kColumnGroups * Tile::kAcross>& sums) {
#pragma unroll
  for (int r = 0; r < own.kOwnRows; ++r)
#pragma unroll
    for (int c = 0; c < own.kOwnColumns; c += 2)
      *reinterpret_cast<float2*>(sums.at(Tile::row(r), Tile::column(c))) = {own.at(r, c), own.at(r, c + 1)};
}

// The tile of the tokens that `source` names; `columns_at`: the first column's place among them; the columns from
// `used` on hold none. `kBeside`: and the products of the rows with text in the columns' place. By one block: leaves
// its sums and squared norms in shared memory, for all threads. By a cluster: each block, `rank`, leaves a share of
// both, for all blocks. Squared norms: of rows and columns (of which those that are rows, too, have them there), of
// text beside a wide tile, or none, where norms are given.
template <bool kBeside, typename T, typename Tile>
__device__ void multiply_tile(TileSource<T, Tile>& source, int64_t dim, int columns_at, int used, int rank,
                              TileShared<Tile>& shared) {
  using Own = Share<T, Tile, kBeside>;
  const int stages = stages_of<T>(dim), length = share_of(stages);
  const bool any = Tile::kGroups || Tile::first_column() < used;
  const auto store_squares = [&](const typename Own::Squares& squares) {
    squares.template for_each<sizeof(T) == 2>([&](float square, int token) { shared.square[token] = square; });
  };
  if constexpr (Tile::kBlocks == 1) {
    TileFragment<Tile> total{};
    BesideFragment<Tile> beside{};
    typename Own::Squares squares;
    add_stages<kBeside>(source, dim, 0, stages, length, columns_at, any, shared, [&](const Own& share) {
      if (any) total += share.products;
      if constexpr (kBeside) beside += share.beside;
      squares += share.squares();
    });
    store_sums<Tile>(total, shared.sums());
    if constexpr (kBeside) store_sums<Tile>(beside, shared.beside());
    store_squares(squares);
    __syncthreads();
  } else {
    const int first = rank * length < stages ? rank * length : stages,
              last = first + length < stages ? first + length : stages;
    add_stages<kBeside>(source, dim, first, last, length, columns_at, any, shared, [&](const Own& share) {
      wait_for_copies<0>();
      __syncthreads(); // all have read the last stage
      store_sums<Tile>(share.products, shared.sums());
      if constexpr (kBeside) store_sums<Tile>(share.beside, shared.beside());
      store_squares(share.squares());
    });
    if (first == last) { // a short D has fewer shares
      for (int at = threadIdx.x; at < shared.kSums; at += blockDim.x)
        shared.sums().start[at] = 0;
      for (int token = threadIdx.x; token < Tile::kTokens; token += blockDim.x)
        shared.square[token] = 0;
    }
    cluster_barrier();
  }
}

// Norms of the tokens [first, last) of the tile, of the squares that were left; for all threads after a barrier.
template <typename Tile> __device__ void take_norms(int first, int last, TileShared<Tile>& shared) {
  for (int token = first + threadIdx.x; token < last; token += blockDim.x) {
    float square = shared.square[token];
    if constexpr (Tile::kBlocks > 1) {
      float share[Tile::kBlocks];
#pragma unroll
      for (int block = 0; block < Tile::kBlocks; ++block)
        share[block] = load_from(shared.square + token, block);
      square = 0;
#pragma unroll
      for (int block = 0; block < Tile::kBlocks; ++block)
        square += share[block];
    }
    shared.set_norm(token, norm_of(square));
  }
}

} // namespace mi_pruner::cuda

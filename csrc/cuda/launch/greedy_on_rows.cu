#include "cuda/kernels/greedy_on_rows.cuh"

#include <algorithm>

#include "cuda/base/paths.h"
#include "cuda/launch/launch.cuh"
#include "cuda/launch/launches.h"

namespace mi_pruner::cuda {
namespace {

#ifdef MI_PRUNER_CUDA_HOST
int64_t row_bytes() { return host::row_bytes(); }
#else
constexpr int64_t row_bytes() { return kRowBytes; }
#endif

template <typename Tile> Shape shape_of(int64_t blocks, bool clustered) {
  return {blocks, kTileThreads, sizeof(RowShared<Tile>), clustered ? kClusterBlocks : 1u};
}

// f(kernel, Tile{}): multiplying by groups of warps where the target does, and the features are halves.
template <typename F> cudaError_t by_kernel(Dtype dtype, const Target& target, const F& f) {
  return by_dtype(dtype, [&](auto t) {
    using T = decltype(t);
    if constexpr (sizeof(T) == 2) {
      using Tile = RowTile<true>;
      bool groups = false;
      const cudaError_t error = runs(rows_kernel<T, Tile>, shape_of<Tile>(1, false), true, target, groups);
      if (error != cudaSuccess) return error;
      if (groups) return f(rows_kernel<T, Tile>, Tile());
    }
    return f(rows_kernel<T, RowTile<false>>, RowTile<false>());
  });
}

} // namespace

cudaError_t size_rows(Dtype dtype, const Layout& visual, int64_t picks, const Target& target, RowMemory& memory) {
  const int64_t longest = visual.longest;
  int clusters = 0;
  const cudaError_t error = by_kernel(dtype, target, [&](auto* kernel, auto tile) {
    return resident_clusters(kernel, shape_of<decltype(tile)>(kClusterBlocks, true), target, clusters);
  });
  memory.clustered = clusters > 0;
  // A block a multiprocessor, and no more than there are parts of products for.
  const int64_t each = memory.clustered ? kClusterBlocks : 1,
                groups = std::max<int64_t>(1, memory.clustered ? clusters : target.processors);
  memory.teams = std::min({visual.samples, kMostTeams, groups});
  memory.blocks = each * std::min(groups, memory.teams * (1 + ceil_div(ceil_div(longest, kTileRows), each)));
  memory.tiles = ceil_div(longest, kTileColumns);
  memory.row_stride = ceil_div(longest, kQuad) * kQuad;
  const int64_t generation = kProductRows * memory.row_stride * static_cast<int64_t>(sizeof(float)),
                room = row_bytes() / (memory.teams * generation),
                useful = ceil_div(std::min(longest, kRowsOfPick * std::min(longest, picks)), kProductRows);
  memory.generations = std::max(kLeastGenerations, std::min({room, useful, kMostGenerations}));
  return error;
}

cudaError_t greedy_on_rows(Dtype dtype, const Tokens& visual, const float* norms, int64_t dim, const float* scores,
                           const Densities& densities, const Selection& selection, const RowMemory& memory,
                           const Picks& picks, const Target& target) {
  return by_kernel(dtype, target, [&](auto* kernel, auto tile) {
    return run(kernel, shape_of<decltype(tile)>(memory.blocks, memory.clustered), target, visual, norms, dim, scores,
               densities, selection, memory, picks);
  });
}

} // namespace mi_pruner::cuda

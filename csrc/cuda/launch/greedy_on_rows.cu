#include "cuda/kernels/greedy_on_rows.cuh"

#include <algorithm>

#include "cuda/base/paths.h"
#include "cuda/launch/launch.cuh"
#include "cuda/launch/launches.h"

namespace mi_pruner::cuda {
namespace {

template <typename Tile> Shape shape_of(int64_t blocks, bool clustered) {
  return {blocks, kTileThreads, sizeof(RowShared<Tile>), true, clustered ? kClusterBlocks : 1u};
}

// f(kernel, Tile{}): multiplying by groups of warps where the current device does, and the features are halves.
template <typename F> cudaError_t by_kernel(Dtype dtype, const F& f) {
  return by_dtype(dtype, [&](auto t) {
    using T = decltype(t);
    if constexpr (sizeof(T) == 2) {
      using Tile = RowTile<true>;
      bool groups = false;
      const cudaError_t error = runs(rows_kernel<T, Tile>, shape_of<Tile>(1, false), true, groups);
      if (error != cudaSuccess) return error;
      if (groups) return f(rows_kernel<T, Tile>, Tile());
    }
    return f(rows_kernel<T, RowTile<false>>, RowTile<false>());
  });
}

// Blocks of the kernel that the current device runs at a time; clusters, if they are launched in clusters.
cudaError_t resident(Dtype dtype, int64_t& blocks, int& clusters) {
  return by_kernel(dtype, [&](auto* kernel, auto tile) {
    Shape shape = shape_of<decltype(tile)>(kClusterBlocks, true);
    shape.cooperative = false; // no part of the question
    int processors = 0, each = 0;
    cudaError_t error = count_processors(processors);
    if (error == cudaSuccess)
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared));
    if (error == cudaSuccess)
      error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, kTileThreads, shape.shared);
    blocks = int64_t{processors} * std::min(each, 1); // see the launch bounds of rows_kernel
    if (error == cudaSuccess) error = resident_clusters(kernel, shape, clusters);
    clusters = static_cast<int>(std::min<int64_t>(clusters, blocks / kClusterBlocks)); // one a multiprocessor, too
    return error;
  });
}

} // namespace

cudaError_t size_teams(Dtype dtype, const Layout& visual, int64_t picks, RowMemory& memory) {
  const int64_t longest = visual.longest;
  int64_t blocks = 0;
  int clusters = 0;
  const cudaError_t error = resident(dtype, blocks, clusters);
  memory.tiles = ceil_div(longest, kTileColumns);
  memory.row_stride = ceil_div(longest, kQuad) * kQuad;
  memory.clustered = takes_cluster(longest, clusters);
  const int64_t unit = memory.clustered ? kClusterBlocks : 1, units = memory.clustered ? clusters : blocks;
  memory.teams = std::max<int64_t>(1, std::min({visual.samples, kMostTeams, units}));
  memory.members =
      unit * std::max<int64_t>(1, std::min({units / memory.teams, memory.tiles / unit, kMostMembers / unit}));
  const int64_t room =
                    row_bytes() / (memory.teams * kTileRows * memory.row_stride * static_cast<int64_t>(sizeof(float))),
                useful = ceil_div(std::min(longest, kRowsOfPick * std::min(longest, picks)), kTileRows);
  memory.generations = std::max(kLeastGenerations, std::min(room, useful));
  return error;
}

cudaError_t greedy_on_rows(Dtype dtype, const Tokens& visual, const float* norms, int64_t dim, const float* scores,
                           const Densities& densities, const Selection& selection, const RowMemory& memory,
                           const Picks& picks, cudaStream_t stream) {
  return by_kernel(dtype, [&](auto* kernel, auto tile) {
    return run(kernel, shape_of<decltype(tile)>(memory.teams * memory.members, memory.clustered), stream, visual, norms,
               dim, scores, densities, selection, memory, picks);
  });
}

} // namespace mi_pruner::cuda

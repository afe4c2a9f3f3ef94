#include "cuda/similarity.cuh"

#include <type_traits>

#include "cuda/paths.h"
#include "cuda/run.cuh"

namespace mi_pruner::cuda {

cudaError_t similarity(Dtype dtype, const Tokens& visual, const Tokens& text, int64_t dim, float kappa,
                       const Similarities& found, cudaStream_t stream) {
  int device = 0, processors = 0, clusters = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device);
  if (error != cudaSuccess) return error;
  const auto tiles = [&](int rows) { // of a sample
    int64_t sum = 0;
    for (int64_t row_tile = 0; row_tile < ceil_div(visual.layout.longest, rows); ++row_tile)
      sum += tiles_across(found.text_tiles, found.visual_tiles, row_tile, rows);
    return sum;
  };
  const auto launch = [&](auto t, auto rows, int64_t parts) {
    using Type = decltype(t);
    constexpr int kRows = decltype(rows)::value;
    const Shape shape{visual.layout.samples * tiles(kRows) * parts, tile_threads(kRows),
                      sizeof(SimilarityShared<kRows>), false, static_cast<unsigned>(parts)};
    return run(similarity_kernel<Type, kRows>, shape, stream, visual, text, dim, kappa, found, tiles(kRows), parts);
  };
  return by_dtype(dtype, [&](auto t) {
    constexpr auto kSmall = std::integral_constant<int, kSmallTileRows>();
    // No more than one of the larger tiles for a multiprocessor: of the smaller ones there is enough for more of them,
    // and for more still where a cluster shares a tile.
    if (visual.layout.samples * tiles(kTileRows) > processors)
      return launch(t, std::integral_constant<int, kTileRows>(), 1);
    const int64_t parts = ceil_div(dim, int64_t{kPartStages} * TileSource<decltype(t), kSmallTileRows>::kDepth);
    return launch(t, kSmall, clusters != 0 && parts <= kClusterBlocks ? parts : 1);
  });
}

} // namespace mi_pruner::cuda

#include "cuda/kernels/similarity.cuh"

#include <type_traits>

#include "cuda/launch/launch.cuh"
#include "cuda/launch/launches.h"

namespace mi_pruner::cuda {

cudaError_t similarity(Dtype dtype, const Tokens& visual, const Tokens& text, int64_t dim, float kappa,
                       const Similarities& found, cudaStream_t stream) {
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const auto tiles = [&](int columns) { // of a sample
    return tiles_of_sample(tiles_of(found.text_tiles, columns), tiles_of(found.visual_tiles, columns),
                           ceil_div(visual.layout.longest, kTileRows), columns);
  };
  const auto launch = [&](auto t, auto tile) {
    using Type = decltype(t);
    using Tile = decltype(tile);
    const Shape shape{visual.layout.samples * tiles(Tile::kColumns) * Tile::kBlocks, kTileThreads,
                      sizeof(SimilarityShared<Tile>), false, Tile::kBlocks};
    return run(similarity_kernel<Type, Tile>, shape, stream, visual, text, dim, kappa, found, tiles(Tile::kColumns));
  };
  return by_dtype(dtype, [&](auto t) {
    // No more than one tile for a multiprocessor: then clusters share larger ones, if D is long enough for all blocks.
    bool shares = visual.layout.samples * tiles(kTileColumns) <= processors &&
                  TileSource<decltype(t), ClusterTile>::stages(dim) >= 2 * kShares;
    if (shares)
      error = has_clusters(similarity_kernel<decltype(t), ClusterTile>, sizeof(SimilarityShared<ClusterTile>), shares);
    if (error != cudaSuccess) return error;
    return shares ? launch(t, ClusterTile()) : launch(t, BlockTile());
  });
}

} // namespace mi_pruner::cuda

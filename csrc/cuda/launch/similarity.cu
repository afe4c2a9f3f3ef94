#include "cuda/kernels/similarity.cuh"

#include "cuda/launch/launch.cuh"
#include "cuda/launch/launches.h"

namespace mi_pruner::cuda {

cudaError_t similarity(Dtype dtype, const Tokens& visual, const Tokens& text, const Layout& slots, int64_t dim,
                       float kappa, const Similarities& found, cudaStream_t stream) {
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const auto tiles = [&](int columns) { // of a sample
    return tiles_of_sample(tiles_of(found.text_tiles, columns), tiles_of(found.visual_tiles, columns),
                           ceil_div(visual.layout.longest, kTileRows), columns);
  };
  const auto shape_of = [&](auto tile) {
    using Tile = decltype(tile);
    return Shape{visual.layout.samples * tiles(Tile::kColumns) * Tile::kBlocks, kTileThreads,
                 sizeof(SimilarityShared<Tile>), false, Tile::kBlocks};
  };
  return by_dtype(dtype, [&](auto t) {
    using T = decltype(t);
    // The first of these shapes that is wanted and runs here.
    bool launched = false;
    const auto launch_if = [&](bool wanted, auto tile) {
      using Tile = decltype(tile);
      if (launched || error != cudaSuccess || !wanted) return;
      const auto kernel = similarity_kernel<T, Tile>;
      error = runs(kernel, shape_of(tile), Tile::kGroups, launched);
      if (launched && error == cudaSuccess)
        error = run(kernel, shape_of(tile), stream, visual, text, slots, dim, kappa, found, tiles(Tile::kColumns));
    };
    // No more than one tile for a multiprocessor: then clusters share each, if D is long enough for all blocks.
    const bool gram = found.visual_tiles > 0, text_too = found.text_tiles > 0,
               few = visual.layout.samples * tiles(kTileColumns) <= processors && stages_of<T>(dim) >= 2 * kShares;
    if constexpr (sizeof(T) == 2) {
      using Wide = TileShape<kWideColumns, 1>;
      launch_if(gram && few, TileShape<kWideColumns, kShares>());
      launch_if(gram && (!text_too || visual.layout.samples * tiles(kWideColumns) <= processors), Wide());
      // Text has few columns, and to compare with it alone is bound by memory, whoever multiplies: a launch of its own
      // where there is more than one wide tile for a multiprocessor.
      bool apart = false;
      if (gram && !launched && error == cudaSuccess)
        error = runs(similarity_kernel<T, Wide>, shape_of(Wide()), Wide::kGroups, apart);
      if (apart && error == cudaSuccess) {
        Similarities part = found;
        part.visual_tiles = 0;
        error = similarity(dtype, visual, text, slots, dim, kappa, part, stream);
        part = found;
        part.text_tiles = 0;
        return error == cudaSuccess ? similarity(dtype, visual, text, slots, dim, kappa, part, stream) : error;
      }
    }
    launch_if(few, TileShape<kTileColumns, kShares>());
    launch_if(true, BlockTile());
    return error;
  });
}

} // namespace mi_pruner::cuda

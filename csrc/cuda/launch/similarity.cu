#include "cuda/kernels/similarity.cuh"

#include "cuda/launch/launch.cuh"
#include "cuda/launch/launches.h"

namespace mi_pruner::cuda {

cudaError_t similarity(Dtype dtype, const Tokens& visual, const Tokens& text, const Layout& slots, int64_t dim,
                       const Similarities& given, const Target& target) {
  Similarities found = given;
  cudaError_t error = cudaSuccess;
  if (given.visual_tiles > 0) {
    // Text that is too long to be beside the diagonal is a launch of its own: few columns, bound by memory, whoever
    // multiplies.
    bool launched = false;
    found.text_tiles = given.text_tiles == 1 ? 1 : 0;
    error = gram(dtype, visual, text, slots, dim, found, launched, target);
    if (error != cudaSuccess || (launched && found.text_tiles == given.text_tiles)) return error;
    found.text_tiles = given.text_tiles;
    if (launched) found.visual_tiles = 0;
  }
  const int64_t tiles =
      tiles_of_sample(found.text_tiles, found.visual_tiles, ceil_div(visual.layout.longest, kTileRows)); // of a sample
  return by_dtype(dtype, [&](auto t) {
    using T = decltype(t);
    // The first of these shapes that is wanted and runs here.
    bool launched = false;
    const auto launch_if = [&](bool wanted, auto tile) {
      using Tile = decltype(tile);
      if (launched || error != cudaSuccess || !wanted) return;
      const Shape shape{visual.layout.samples * tiles * Tile::kBlocks, kTileThreads, sizeof(SimilarityShared<Tile>),
                        Tile::kBlocks};
      error = run_if_it_can(similarity_kernel<T, Tile>, shape, Tile::kGroups, launched, target, visual, text, slots,
                            dim, found, tiles);
    };
    // No more than one tile for a multiprocessor: then clusters share each, if D is long enough for all blocks. Of
    // halves with text alone, which memory bounds, no more than one for two.
    const int most_in_clusters = sizeof(T) == 2 && found.visual_tiles == 0 ? target.processors / 2 : target.processors;
    launch_if(visual.layout.samples * tiles <= most_in_clusters && long_enough<T>(dim),
              TileShape<kTileColumns, kShares>());
    launch_if(true, BlockTile());
    return error;
  });
}

} // namespace mi_pruner::cuda

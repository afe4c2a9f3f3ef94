#include "cuda/kernels/gram.cuh"

#include "cuda/launch/launch.cuh"
#include "cuda/launch/launches.h"

namespace mi_pruner::cuda {

cudaError_t gram(Dtype dtype, const Tokens& visual, const Tokens& text, const Layout& slots, int64_t dim,
                 const Similarities& found, bool& launched, const Target& target) {
  launched = false;
  const int64_t row_tiles = ceil_div(visual.layout.longest, kTileRows),
                tiles = visual.layout.samples * row_tiles * (row_tiles + 1) / 2;
  return by_dtype(dtype, [&](auto t) {
    using T = decltype(t);
    cudaError_t error = cudaSuccess;
    if constexpr (sizeof(T) == 2) {
      const auto launch_if = [&](bool wanted, auto tile) {
        using Tile = decltype(tile);
        if (launched || error != cudaSuccess || !wanted) return;
        const Shape shape{tiles * Tile::kBlocks, kTileThreads, sizeof(SimilarityShared<Tile>), Tile::kBlocks};
        error = run_if_it_can(gram_kernel<T, Tile>, shape, Tile::kGroups, launched, target, visual, text, slots, dim,
                              found, row_tiles);
      };
      // Clusters share tiles where these are few: in three turns of all multiprocessors they are still the sooner done.
      launch_if(tiles * kShares <= 3 * target.processors && long_enough<T>(dim), TileShape<kWideColumns, kShares>());
      launch_if(true, TileShape<kWideColumns, 1>());
    }
    return error;
  });
}

} // namespace mi_pruner::cuda

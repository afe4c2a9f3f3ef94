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
  const auto tiles = [&](int rows) { // of a sample
    return tiles_of_sample(found.text_tiles, found.visual_tiles, ceil_div(visual.layout.longest, rows), rows);
  };
  const auto launch = [&](auto t, auto rows, auto blocks) {
    using Type = decltype(t);
    constexpr int kRows = decltype(rows)::value, kBlocks = decltype(blocks)::value;
    const Shape shape{visual.layout.samples * tiles(kRows) * kBlocks, kTileThreads, sizeof(SimilarityShared<kRows>),
                      false, kBlocks};
    return run(similarity_kernel<Type, kRows, kBlocks>, shape, stream, visual, text, dim, kappa, found, tiles(kRows));
  };
  return by_dtype(dtype, [&](auto t) {
    constexpr auto kLarge = std::integral_constant<int, kTileRows>();
    constexpr auto kSmall = std::integral_constant<int, kSmallTileRows>();
    constexpr auto kAlone = std::integral_constant<int, 1>();
    constexpr auto kPair = std::integral_constant<int, 2>();
    // No more than one of the larger tiles for a multiprocessor: of the smaller ones there is enough for more of them,
    // and for more still where two blocks share a tile.
    if (visual.layout.samples * tiles(kTileRows) > processors) return launch(t, kLarge, kAlone);
    const int stages = TileSource<decltype(t), kSmallTileRows>::stages(dim);
    bool clusters = false;
    if (first_half(stages) < stages) error = has_clusters(similarity_kernel<decltype(t), kSmallTileRows, 2>, clusters);
    if (error != cudaSuccess) return error;
    return clusters ? launch(t, kSmall, kPair) : launch(t, kSmall, kAlone);
  });
}

} // namespace mi_pruner::cuda

#include "cuda/similarity.cuh"

#include <type_traits>

#include "cuda/run.cuh"

namespace mi_pruner::cuda {

cudaError_t similarity(Dtype dtype, const Tokens& visual, const Tokens& text, int64_t dim, float kappa,
                       const Similarities& found, cudaStream_t stream) {
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const auto row_tiles = [&](int rows) { return ceil_div(visual.layout.longest, rows); };
  const auto blocks = [&](int rows) {
    return visual.layout.samples * row_tiles(rows) * (found.text_tiles + found.visual_tiles);
  };
  const auto launch = [&](auto t, auto rows) {
    using Type = decltype(t);
    constexpr int kRows = decltype(rows)::value;
    return run(similarity_kernel<Type, kRows>, {blocks(kRows), tile_threads(kRows), sizeof(SimilarityShared<kRows>)},
               stream, visual, text, dim, kappa, found, row_tiles(kRows));
  };
  return by_dtype(dtype, [&](auto t) {
    // No more than one of the larger tiles for a multiprocessor: of the smaller ones there is enough for more of them.
    if (blocks(kTileRows) <= processors) return launch(t, std::integral_constant<int, kSmallTileRows>());
    return launch(t, std::integral_constant<int, kTileRows>());
  });
}

} // namespace mi_pruner::cuda

#include "cuda/similarity.cuh"

#include "cuda/run.cuh"

namespace mi_pruner::cuda {

cudaError_t similarity(Dtype dtype, const Tokens& visual, const Tokens& text, int64_t dim, float kappa,
                       const Similarities& found, cudaStream_t stream) {
  const int64_t blocks = visual.layout.samples * found.row_tiles * (found.text_tiles + found.visual_tiles);
  return by_dtype(dtype, [&](auto t) {
    return run(similarity_kernel<decltype(t)>, {blocks, kTileThreads, sizeof(TileShared)}, stream, visual, text, dim,
               kappa, found);
  });
}

} // namespace mi_pruner::cuda

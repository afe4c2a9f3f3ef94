#include "cuda/kernels/greedy_on_gram.cuh"

#include "cuda/launch/launch.cuh"
#include "cuda/launch/launches.h"

namespace mi_pruner::cuda {

cudaError_t greedy_on_gram(const Layout& visual, const float* scores, const Similarities& found,
                           const Densities& densities, const Selection& selection, const Picks& picks,
                           cudaStream_t stream) {
  const unsigned threads = static_cast<unsigned>(ceil_div(visual.longest, 32 * kQuad)) * 32;
  Shape shape{visual.samples, threads, GreedyShared::bytes(visual.longest)};
  shape.most_shared = GreedyShared::bytes(kGramTokens);
  return by_mode(selection.redundancy, [&](auto mode) {
    return run(greedy_kernel<decltype(mode)::value>, shape, stream, visual, scores, found, densities, selection, picks);
  });
}

} // namespace mi_pruner::cuda

#include "cuda/kernels/greedy_on_gram.cuh"

#include "cuda/launch/launch.cuh"
#include "cuda/launch/launches.h"

namespace mi_pruner::cuda {

namespace {

template <Redundancy kMode, typename... Arguments>
cudaError_t launch(const Layout& visual, cudaStream_t stream, const Arguments&... arguments) {
  const unsigned threads = static_cast<unsigned>(ceil_div(visual.longest, 32 * kQuad)) * 32;
  Shape shape{visual.samples, threads, GreedyShared::bytes(visual.longest)};
  shape.most_shared = GreedyShared::bytes(kGramTokens);
  return run(greedy_kernel<kMode>, shape, stream, visual, arguments...);
}

} // namespace

cudaError_t greedy_on_gram(const Layout& visual, const float* scores, const Similarities& found,
                           const Densities& densities, const Selection& selection, const Picks& picks,
                           cudaStream_t stream) {
  switch (selection.redundancy) {
  case Redundancy::kMean:
    return launch<Redundancy::kMean>(visual, stream, scores, found, densities, selection, picks);
  case Redundancy::kChain:
    return launch<Redundancy::kChain>(visual, stream, scores, found, densities, selection, picks);
  default:
    return launch<Redundancy::kMax>(visual, stream, scores, found, densities, selection, picks);
  }
}

} // namespace mi_pruner::cuda

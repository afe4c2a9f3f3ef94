#include "cuda/kernels/greedy_on_gram.cuh"

#include "cuda/launch/launch.cuh"
#include "cuda/launch/launches.h"

namespace mi_pruner::cuda {

cudaError_t greedy_on_gram(const Layout& visual, const float* scores, const Similarities& found,
                           const Densities& densities, const Selection& selection, const Picks& picks,
                           cudaStream_t stream) {
  const unsigned threads = static_cast<unsigned>(ceil_div(visual.longest, 32 * kQuad)) * 32;
  const auto launch = [&](auto kernel) {
    Shape shape{visual.samples, threads, GreedyShared::bytes(visual.longest)};
    shape.most_shared = GreedyShared::bytes(kGramTokens);
    return run(kernel, shape, stream, visual, scores, found, densities, selection, picks);
  };
  switch (selection.redundancy) {
  case Redundancy::kMean:
    return launch(greedy_kernel<Redundancy::kMean>);
  case Redundancy::kChain:
    return launch(greedy_kernel<Redundancy::kChain>);
  default:
    return launch(greedy_kernel<Redundancy::kMax>);
  }
}

} // namespace mi_pruner::cuda

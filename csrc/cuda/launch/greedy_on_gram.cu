#include "cuda/kernels/greedy_on_gram.cuh"

#include <type_traits>

#include "cuda/launch/launch.cuh"
#include "cuda/launch/launches.h"

namespace mi_pruner::cuda {

namespace {

template <Redundancy kMode, int kQuads, typename... Arguments>
cudaError_t launch(const Layout& visual, cudaStream_t stream, const Arguments&... arguments) {
  const unsigned warps = static_cast<unsigned>(ceil_div(visual.longest, Held<kQuads>::kOfWarp));
  Shape shape{visual.samples, 32 * warps + kFetchers, GreedyShared::bytes(visual.longest)};
  shape.most_shared = GreedyShared::bytes(kGramTokens);
  return run(greedy_kernel<kMode, kQuads>, shape, stream, visual, arguments...);
}

} // namespace

cudaError_t greedy_on_gram(const Layout& visual, const float* scores, const Similarities& found,
                           const Densities& densities, const Selection& selection, const Picks& picks,
                           cudaStream_t stream) {
  const auto by_length = [&](auto mode) {
    constexpr Redundancy kMode = decltype(mode)::value;
    return quads_of(visual.longest) == 1 ? launch<kMode, 1>(visual, stream, scores, found, densities, selection, picks)
                                         : launch<kMode, 2>(visual, stream, scores, found, densities, selection, picks);
  };
  switch (selection.redundancy) {
  case Redundancy::kMean:
    return by_length(std::integral_constant<Redundancy, Redundancy::kMean>{});
  case Redundancy::kChain:
    return by_length(std::integral_constant<Redundancy, Redundancy::kChain>{});
  default:
    return by_length(std::integral_constant<Redundancy, Redundancy::kMax>{});
  }
}

} // namespace mi_pruner::cuda

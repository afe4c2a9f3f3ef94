#include "cuda/kernels/greedy_on_gram.cuh"

#include <type_traits>

#include "cuda/launch/launch.cuh"
#include "cuda/launch/launches.h"

namespace mi_pruner::cuda {

namespace {

template <Redundancy kMode, bool kShort, typename... Arguments>
cudaError_t launch(const Layout& visual, cudaStream_t stream, const Arguments&... arguments) {
  const unsigned holders = static_cast<unsigned>(ceil_div(visual.longest, 32 * kQuad)) * 32;
  Shape shape{visual.samples, holders + GreedyThreads<kShort>::kFetching, GreedyShared::bytes(visual.longest)};
  shape.most_shared = GreedyShared::bytes(kGramTokens);
  return run(greedy_kernel<kMode, kShort>, shape, stream, visual, arguments...);
}

} // namespace

cudaError_t greedy_on_gram(const Layout& visual, const float* scores, const Similarities& found,
                           const Densities& densities, const Selection& selection, const Picks& picks,
                           cudaStream_t stream) {
  const auto by_length = [&](auto mode) {
    constexpr Redundancy kMode = decltype(mode)::value;
    return visual.longest <= kShortSample
               ? launch<kMode, true>(visual, stream, scores, found, densities, selection, picks)
               : launch<kMode, false>(visual, stream, scores, found, densities, selection, picks);
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

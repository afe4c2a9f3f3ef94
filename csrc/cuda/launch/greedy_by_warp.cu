#include "cuda/kernels/greedy_by_warp.cuh"

#include <algorithm>

#include "cuda/launch/launch.cuh"
#include "cuda/launch/launches.h"

namespace mi_pruner::cuda {

cudaError_t greedy_by_warp(const Layout& visual, const float* scores, const Similarities& found,
                           const Densities& densities, const Selection& selection, const Picks& picks,
                           cudaStream_t stream) {
  int most = 0, processors = 0;
  cudaError_t error = most_shared(most);
  if (error == cudaSuccess) error = count_processors(processors);
  if (error != cudaSuccess) return error;
  const auto run_with = [&](auto quads) {
    constexpr int kQuads = decltype(quads)::value;
    using Shared = WarpShared<kQuads>;
    static_assert(Shared::bytes(2) <= kMostShared);
    // Of more samples than multiprocessors several share one, and its memory: each keeps fewer rows.
    constexpr int64_t kReserved = 1024; // bytes of a block that are not its own
    const int64_t sharing = std::clamp<int64_t>(ceil_div(visual.samples, processors), 1, Shared::kSharing);
    const unsigned kept = Shared::kept((most + kReserved) / sharing - kReserved);
    Shape shape{visual.samples, 32 * kGreedyWarps, Shared::bytes(kept)};
    shape.most_shared = Shared::bytes(Shared::kept(most));
    return by_mode(selection.redundancy, [&](auto mode) {
      return run(greedy_warp_kernel<decltype(mode)::value, kQuads>, shape, stream, visual, scores, found, densities,
                 selection, picks, kept);
    });
  };
  if (visual.longest <= 2 * 32 * kQuad) return run_with(std::integral_constant<int, 2>());
  if (visual.longest <= 5 * 32 * kQuad) return run_with(std::integral_constant<int, 5>());
  static_assert(kShortSample == 8 * 32 * kQuad);
  return run_with(std::integral_constant<int, 8>());
}

} // namespace mi_pruner::cuda

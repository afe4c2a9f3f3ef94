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
  // `sharing`: blocks of a multiprocessor, where there are so many: as registers allow.
  const auto run_with = [&](auto quads, auto several, int64_t sharing) {
    constexpr int kQuads = decltype(quads)::value;
    constexpr bool kSeveral = decltype(several)::value;
    constexpr int64_t kTokens = 32 * kQuad * kQuads;
    constexpr unsigned kWarps = kGreedyWarps<kSeveral>;
    const unsigned selecting = kSeveral ? static_cast<unsigned>(ceil_div(visual.longest, kTokens)) : 1;
    return by_mode(selection.redundancy, [&](auto mode) {
      constexpr Redundancy kMode = decltype(mode)::value;
      const int64_t most_picks = std::min(visual.longest, picks.slots.longest),
                    factors = kMode == Redundancy::kChain  ? visual.longest
                              : kMode == Redundancy::kMean ? most_picks
                                                           : 0;
      const auto fours = [](int64_t count) { return static_cast<unsigned>(ceil_div(count, 4) * 4); };
      WarpRoom room{fours(visual.longest), fours(most_picks), fours(factors),
                    selecting * static_cast<unsigned>(kTokens * sizeof(float))};
      // Of more samples than multiprocessors several share one, and its memory: each keeps fewer rows.
      constexpr int64_t kReserved = 1024; // bytes of a block that are not its own
      const int64_t blocks = std::clamp<int64_t>(ceil_div(visual.samples, processors), 1, sharing);
      room.fill((most + kReserved) / blocks - kReserved, Fetchers{selecting}.count(kWarps));
      Shape shape{visual.samples, 32 * kWarps, room.bytes()};
      shape.most_shared = static_cast<size_t>(most);
      return run(greedy_warp_kernel<kMode, kQuads, kSeveral>, shape, stream, visual, scores, found, densities,
                 selection, picks, room, selecting);
    });
  };
  constexpr std::integral_constant<int, 8> kAllQuads;
  static_assert(kShortSample == 32 * kQuad * kAllQuads);
  if (visual.longest <= 2 * 32 * kQuad) return run_with(std::integral_constant<int, 2>(), std::false_type(), 4);
  if (visual.longest <= 5 * 32 * kQuad) return run_with(std::integral_constant<int, 5>(), std::false_type(), 2);
  if (visual.longest <= kShortSample) return run_with(kAllQuads, std::false_type(), 1);
  return run_with(kAllQuads, std::true_type(), 1);
}

} // namespace mi_pruner::cuda

#include "cuda/kernels/greedy_by_warp.cuh"

#include <algorithm>
#include <cstdlib>

#include "cuda/launch/launch.cuh"
#include "cuda/launch/launches.h"

namespace mi_pruner::cuda {

cudaError_t greedy_by_warp(const Layout& visual, const float* scores, const Similarities& found,
                           const Densities& densities, const Selection& selection, const Picks& picks,
                           cudaStream_t stream) {
  const auto env = [](const char* name, int otherwise) {
    const char* v = getenv(name);
    return v ? atoi(v) : otherwise;
  };
  int most = 0, processors = 0;
  cudaError_t error = most_shared(most);
  if (error == cudaSuccess) error = count_processors(processors);
  if (error != cudaSuccess) return error;
  bool launched = false;
  // The first of these ways that is wanted and runs here. `sharing`: blocks of a multiprocessor, where there are so
  // many: as registers allow.
  const auto launch_if = [&](bool wanted, auto quads, auto together, int64_t sharing) {
    if (launched || error != cudaSuccess || !wanted) return;
    constexpr int kQuads = decltype(quads)::value;
    constexpr Together kHow = decltype(together)::value;
    constexpr int64_t kTokens = int64_t{kApart} * kQuads;
    constexpr unsigned kWarps = kGreedyWarps<kHow>;
    const unsigned selecting =
        kHow == Together::kInBlock ? static_cast<unsigned>(ceil_div(visual.longest, kTokens)) : 1;
    error = by_mode(selection.redundancy, [&](auto mode) {
      constexpr Redundancy kMode = decltype(mode)::value;
      const int64_t most_picks = std::min(visual.longest, picks.slots.longest),
                    factors = kMode == Redundancy::kChain  ? visual.longest
                              : kMode == Redundancy::kMean ? most_picks
                                                           : 0,
                    blocks = visual.samples * kGreedyBlocks<kHow>;
      const auto fours = [](int64_t count) { return static_cast<unsigned>(ceil_div(count, 4) * 4); };
      WarpRoom room{fours(visual.longest), fours(most_picks), fours(factors),
                    selecting * static_cast<unsigned>(kTokens * sizeof(float))};
      // Of more blocks than multiprocessors several share one, and its memory: each keeps fewer rows.
      constexpr int64_t kReserved = 1024; // bytes of a block that are not its own
      const int64_t beside = std::clamp<int64_t>(ceil_div(blocks, processors), 1, sharing);
      room.fill((most + kReserved) / beside - kReserved,
                std::min<int>(env("MI_F", 99), Fetchers{selecting}.count(kWarps)));
      Shape shape{blocks, 32 * kWarps, room.bytes(), false, kGreedyBlocks<kHow>};
      shape.most_shared = static_cast<size_t>(most);
      const auto kernel = greedy_warp_kernel<kMode, kQuads, kHow>;
      cudaError_t failed = runs(kernel, shape, false, launched);
      if (launched && failed == cudaSuccess)
        failed = run(kernel, shape, stream, visual, scores, found, densities, selection, picks, room, selecting);
      return failed;
    });
  };
  constexpr std::integral_constant<Together, Together::kAlone> kAlone;
  constexpr std::integral_constant<Together, Together::kInBlock> kInBlock;
  constexpr std::integral_constant<Together, Together::kInCluster> kInCluster;
  constexpr std::integral_constant<int, 1> kOne;
  constexpr std::integral_constant<int, 2> kTwo;
  constexpr std::integral_constant<int, 3> kThree;
  constexpr std::integral_constant<int, 4> kFour;
  constexpr std::integral_constant<int, 5> kFive;
  constexpr std::integral_constant<int, 8> kEight;
  static_assert(kShortSample == kApart * kEight && kGramTokens == kClusterBlocks * kApart * kFour);
  const bool few = env("MI_C", visual.samples * kClusterBlocks <= 2 * processors && visual.longest > kShortSample);
  const auto fits = [&](auto quads, int64_t warps) { return visual.longest <= warps * kApart * quads; };
  launch_if(few && fits(kOne, kClusterBlocks), kOne, kInCluster, 2);
  launch_if(few && fits(kTwo, kClusterBlocks), kTwo, kInCluster, 2);
  launch_if(few && fits(kThree, kClusterBlocks), kThree, kInCluster, 2);
  launch_if(few, kFour, kInCluster, 2);
  launch_if(fits(kTwo, 1), kTwo, kAlone, 4);
  launch_if(fits(kFive, 1), kFive, kAlone, 2);
  launch_if(fits(kEight, 1), kEight, kAlone, 1);
  launch_if(true, kEight, kInBlock, 1);
  return error;
}

} // namespace mi_pruner::cuda

#include "cuda/kernels/greedy_by_warp.cuh"

#include <algorithm>

#include "cuda/launch/launch.cuh"
#include "cuda/launch/launches.h"

namespace mi_pruner::cuda {

// A kernel of greedy_by_warp.cuh: how a sample's tokens are held, and by whom; `kSharing` of its blocks, at the most,
// share a multiprocessor, as registers allow.
template <Together kTheHow, int kTheQuads, int kTheSharing> struct Way {
  static constexpr Together kHow = kTheHow;
  static constexpr int kQuads = kTheQuads;
  static constexpr int64_t kSharing = kTheSharing, kTokens = int64_t{kApart} * kQuads; // of a warp
  static constexpr int64_t kMostTokens = kTokens * (kHow == Together::kInCluster ? kClusterBlocks
                                                    : kHow == Together::kInBlock ? int{kMostSelecting}
                                                                                 : 1);
};

cudaError_t greedy_by_warp(const Layout& visual, const float* scores, const Similarities& found,
                           const Densities& densities, const Selection& selection, const Picks& picks,
                           const Target& target) {
  const int64_t most = static_cast<int64_t>(target.most_shared);
  cudaError_t error = cudaSuccess;
  const int64_t longest = visual.longest, most_picks = std::min(longest, picks.slots.longest);
  bool launched = false;
  // The first of these ways that is wanted, holds the longest sample and runs here.
  const auto launch_if = [&](bool wanted, auto way) {
    using TheWay = decltype(way);
    constexpr Together kHow = TheWay::kHow;
    if (launched || error != cudaSuccess || !wanted || longest > TheWay::kMostTokens) return;
    error = by_mode(selection.redundancy, [&](auto mode) {
      constexpr Redundancy kMode = decltype(mode)::value;
      constexpr unsigned kWarps = kGreedyWarps<kHow>;
      const auto fours = [](int64_t count) { return static_cast<unsigned>(ceil_div(count, 4) * 4); };
      const unsigned selecting =
          kHow == Together::kInBlock ? static_cast<unsigned>(ceil_div(longest, TheWay::kTokens)) : 1;
      WarpRoom room{fours(longest), fours(most_picks),
                    fours(kMode == Redundancy::kChain  ? longest
                          : kMode == Redundancy::kMean ? most_picks
                                                       : 0),
                    selecting * static_cast<unsigned>(TheWay::kTokens * sizeof(float))};
      // Of more blocks than multiprocessors several share one, and its memory: each keeps fewer rows.
      constexpr int64_t kReserved = 1024; // bytes of a block that are not its own
      const int64_t blocks = visual.samples * kGreedyBlocks<kHow>,
                    sharing = std::clamp<int64_t>(ceil_div(blocks, target.processors), 1, TheWay::kSharing);
      room.fill((most + kReserved) / sharing - kReserved, Fetchers{selecting}.count(kWarps));
      Shape shape{blocks, 32 * kWarps, room.bytes(), kGreedyBlocks<kHow>};
      shape.most_shared = target.most_shared;
      return run_if_it_can(greedy_warp_kernel<kMode, TheWay::kQuads, kHow>, shape, false, launched, target, visual,
                           scores, found, densities, selection, picks, room, selecting);
    });
  };
  launch_if(true, Way<Together::kAlone, 2, 4>());
  launch_if(true, Way<Together::kAlone, 5, 2>());
  static_assert(Way<Together::kAlone, 8, 1>::kMostTokens == kShortSample);
  launch_if(true, Way<Together::kAlone, 8, 1>());
  // Clusters, where each of their blocks has a multiprocessor to itself, wherever they come to lie.
  const bool few = visual.samples * kClusterBlocks <= target.processors / 2;
  launch_if(few, Way<Together::kInCluster, 2, 1>());
  launch_if(few, Way<Together::kInCluster, 3, 1>());
  static_assert(Way<Together::kInCluster, 4, 1>::kMostTokens == kGramTokens);
  launch_if(few, Way<Together::kInCluster, 4, 1>());
  static_assert(Way<Together::kInBlock, 8, 1>::kMostTokens == kGramTokens);
  launch_if(true, Way<Together::kInBlock, 8, 1>());
  return error == cudaSuccess && !launched ? cudaErrorInvalidConfiguration : error;
}

} // namespace mi_pruner::cuda

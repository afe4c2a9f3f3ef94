#include "cuda/kernels/normalisers.cuh"

#include <algorithm>

#include "cuda/launch/launch.cuh"
#include "cuda/launch/launches.h"

namespace mi_pruner::cuda {

constexpr int64_t kBlocksAtOnce = 4; // of a multiprocessor, where its shared memory is enough for them
constexpr int64_t kMostRows = 8;     // one after another

constexpr size_t kMostOfNormalisers = sizeof(NormaliserShared) + RedundancyMaker::bytes(kGramTokens);
static_assert(kMostOfNormalisers <= kMostShared);

cudaError_t normalisers(const Layout& visual, const Layout& text, const Similarities& found, float kappa, double ratio,
                        const Densities& densities, const Scoring& scoring, unsigned* counters, int64_t counter_count,
                        const Target& target) {
  // Redundancies: as many rows one after another, of a warp or a block, as let all blocks run at a time: what blocks
  // begin with is shared among them.
  const unsigned row_warps = RedundancyMaker::warps_of_row(visual.longest);
  const int64_t at_once = kNormaliserWarps / row_warps, // by a block
      rows = std::clamp<int64_t>(ceil_div(visual.samples * visual.longest, kBlocksAtOnce * target.processors * at_once),
                                 1, kMostRows);
  // Without text, too, the prior is normalised, chunk by chunk.
  const int64_t of_text = densities.chunks * std::max<int64_t>(found.text_groups, 1),
                of_visual = found.visual_tiles > 0 ? ceil_div(visual.longest, rows * at_once) : 0,
                of_scores = scoring.scores != nullptr ? ceil_div(visual.longest, kScoreRows) : 0;
  const int64_t blocks = visual.samples * (of_text + of_visual + of_scores);
  const Programs programs{static_cast<unsigned>(of_text), static_cast<unsigned>(of_visual),
                          static_cast<unsigned>(of_scores), static_cast<unsigned>(rows), row_warps};
  const Shape shape{.blocks = blocks,
                    .threads = kNormaliserThreads,
                    .shared = sizeof(NormaliserShared) + (of_visual > 0 ? RedundancyMaker::bytes(visual.longest) : 0),
                    .most_shared = kMostOfNormalisers};
  return run(normaliser_kernel, shape, target, visual, text, found, kappa, ratio, densities, scoring, counters,
             counter_count, programs);
}

} // namespace mi_pruner::cuda

#include "cuda/kernels/normalisers.cuh"

#include <algorithm>

#include "cuda/launch/launch.cuh"
#include "cuda/launch/launches.h"

namespace mi_pruner::cuda {

cudaError_t normalisers(const Layout& visual, const Layout& text, const Similarities& found, float kappa, double ratio,
                        const Densities& densities, const Scoring& scoring, unsigned* arrivals, int64_t arrivals_count,
                        cudaStream_t stream) {
  // Without text, too, the prior is normalised, chunk by chunk.
  const int64_t of_text = densities.chunks * std::max<int64_t>(found.text_groups, 1),
                of_visual = found.visual_tiles > 0 ? ceil_div(visual.longest, kLogZRows) : 0,
                of_scores = scoring.scores != nullptr ? ceil_div(visual.longest, kScoreRows) : 0;
  const int64_t blocks = visual.samples * (of_text + of_visual + of_scores);
  const Programs programs{static_cast<unsigned>(of_text), static_cast<unsigned>(of_visual),
                          static_cast<unsigned>(of_scores)};
  return run(normaliser_kernel, {blocks, kNormaliserThreads, sizeof(NormaliserShared)}, stream, visual, text, found,
             kappa, ratio, densities, scoring, arrivals, arrivals_count, programs);
}

} // namespace mi_pruner::cuda

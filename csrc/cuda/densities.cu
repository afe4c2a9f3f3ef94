#include "cuda/densities.cuh"

#include <algorithm>

#include "cuda/run.cuh"

namespace mi_pruner::cuda {

cudaError_t normalisers(const Layout& visual, const Layout& text, const Similarities& found, float kappa, double ratio,
                        const Densities& densities, unsigned* arrivals, int64_t arrivals_count, cudaStream_t stream) {
  // Without text, too, the prior is normalised, chunk by chunk.
  const int64_t text_programs = densities.chunks * std::max<int64_t>(found.text_groups, 1),
                visual_programs = found.visual_tiles > 0 ? ceil_div(visual.longest, kLogZRows) : 0;
  const int64_t blocks = visual.samples * (text_programs + visual_programs);
  return run(normaliser_kernel, {blocks, kNormaliserThreads, sizeof(DensityShared)}, stream, visual, text, found, kappa,
             ratio, densities, arrivals, arrivals_count, text_programs, visual_programs);
}

cudaError_t scores(const Layout& visual, const Layout& text, const Similarities& found, const Densities& densities,
                   bool joint, float* scores, cudaStream_t stream) {
  const int64_t programs = ceil_div(visual.longest, kScoreRows);
  return run(score_kernel, {visual.samples * programs, kScoreThreads, 0}, stream, visual, text, found, densities, joint,
             scores, programs);
}

} // namespace mi_pruner::cuda

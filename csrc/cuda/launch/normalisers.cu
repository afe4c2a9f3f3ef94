#include "cuda/kernels/normalisers.cuh"

#include <algorithm>

#include "cuda/launch/launch.cuh"
#include "cuda/launch/launches.h"

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

} // namespace mi_pruner::cuda

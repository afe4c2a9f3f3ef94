#include "cuda/kernels/scores.cuh"

#include "cuda/launch/launch.cuh"
#include "cuda/launch/launches.h"

namespace mi_pruner::cuda {

cudaError_t scores(const Layout& visual, const Layout& text, const Similarities& found, const Densities& densities,
                   bool joint, float* scores, cudaStream_t stream) {
  const int64_t programs = ceil_div(visual.longest, kScoreRows);
  return run(score_kernel, {visual.samples * programs, kScoreThreads, 0}, stream, visual, text, found, densities, joint,
             scores, programs);
}

} // namespace mi_pruner::cuda

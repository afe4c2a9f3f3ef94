#include "cuda/kernels/top_k.cuh"

#include "cuda/launch/launch.cuh"
#include "cuda/launch/launches.h"

namespace mi_pruner::cuda {

cudaError_t top_k(const Layout& visual, const float* scores, const float* log_prior, const Picks& picks,
                  const Target& target) {
  const int64_t programs = ceil_div(visual.longest, kTopKThreads);
  return run(top_k_kernel, {visual.samples * programs, kTopKThreads, sizeof(TopKShared)}, target, visual, scores,
             log_prior, picks, programs);
}

} // namespace mi_pruner::cuda

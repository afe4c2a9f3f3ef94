#include "cuda/kernels/gather.cuh"

#include "cuda/launch/launch.cuh"
#include "cuda/launch/launches.h"

namespace mi_pruner::cuda {

cudaError_t gather(const Tokens& visual, int64_t dim, int64_t element, const Picks& picks, void* tokens,
                   int64_t* sorted_indices, float* sorted_gains, const Target& target) {
  const int64_t programs = picks.slots.longest > 0 ? picks.slots.longest : 1, // slots that no sample owns remain
      bytes = dim * element;
  const auto run_with = [&](auto word) {
    return run(gather_kernel<decltype(word)>, {picks.slots.samples * programs, kGatherThreads, 0}, target, visual,
               bytes, element, picks, static_cast<unsigned char*>(tokens), sorted_indices, sorted_gains, programs);
  };
  if (visual.aligned && bytes % 16 == 0) return run_with(uint4{});
  return element == 4 ? run_with(uint32_t{}) : run_with(uint16_t{});
}

} // namespace mi_pruner::cuda

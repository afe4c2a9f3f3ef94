#include "cuda/gather.cuh"
#include "cuda/greedy.cuh"
#include "cuda/run.cuh"
#include "cuda/top_k.cuh"

namespace mi_pruner::cuda {

cudaError_t greedy_on_gram(const Layout& visual, const float* scores, const Similarities& found,
                           const Densities& densities, const Selection& selection, const Picks& picks,
                           cudaStream_t stream) {
  const unsigned threads = static_cast<unsigned>(ceil_div(visual.longest, 32 * kQuad)) * 32;
  const auto launch = [&](auto kernel) {
    Shape shape{visual.samples, threads, GreedyShared::bytes(visual.longest)};
    shape.most_shared = GreedyShared::bytes(kGramTokens);
    return run(kernel, shape, stream, visual, scores, found, densities, selection, picks);
  };
  switch (selection.redundancy) {
  case Redundancy::kMean:
    return launch(greedy_kernel<Redundancy::kMean>);
  case Redundancy::kChain:
    return launch(greedy_kernel<Redundancy::kChain>);
  default:
    return launch(greedy_kernel<Redundancy::kMax>);
  }
}

cudaError_t top_k(const Layout& visual, const float* scores, const float* log_prior, const Picks& picks,
                  cudaStream_t stream) {
  const int64_t programs = ceil_div(visual.longest, kTopKThreads);
  return run(top_k_kernel, {visual.samples * programs, kTopKThreads, sizeof(TopKShared)}, stream, visual, scores,
             log_prior, picks, programs);
}

cudaError_t gather(const Tokens& visual, int64_t dim, int64_t element, const Picks& picks, void* tokens,
                   int64_t* sorted_indices, float* sorted_gains, cudaStream_t stream) {
  const int64_t programs = picks.slots.longest > 0 ? picks.slots.longest : 1; // slots that no sample owns remain
  return run(gather_kernel, {picks.slots.samples * programs, kGatherThreads, 0}, stream, visual, dim, element, picks,
             static_cast<unsigned char*>(tokens), sorted_indices, sorted_gains, programs);
}

} // namespace mi_pruner::cuda

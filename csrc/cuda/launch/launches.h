// The launches, each in the file of its name. Free of Torch; memory belongs to the caller.
#pragma once

#include "cuda/base/arguments.h"

namespace mi_pruner::cuda {

// Of the device of this index; the runtime is asked once in a process.
cudaError_t find_target(int device, cudaStream_t stream, Target& target);

// `slots`: of a selection that follows; a layout's `cu` is left for the other launches.
cudaError_t similarity(Dtype dtype, const Tokens& visual, const Tokens& text, const Layout& slots, int64_t dim,
                       const Similarities& found, const Target& target);

// Of these the Gram matrix, and short text (at most one tile; none where there are more), of halves where the current
// device multiplies by groups of warps: else `launched` is false.
cudaError_t gram(Dtype dtype, const Tokens& visual, const Tokens& text, const Layout& slots, int64_t dim,
                 const Similarities& found, bool& launched, const Target& target);

// kappa <= 0: by the bandwidth rule. ratio: for densities.most_picks. `counters` (counter_count) become 0, for a row
// path that follows. The scores, too, where they are wanted.
cudaError_t normalisers(const Layout& visual, const Layout& text, const Similarities& found, float kappa, double ratio,
                        const Densities& densities, const Scoring& scoring, unsigned* counters, int64_t counter_count,
                        const Target& target);

cudaError_t greedy_by_warp(const Layout& visual, const float* scores, const Similarities& found,
                           const Densities& densities, const Selection& selection, const Picks& picks,
                           const Target& target);

cudaError_t top_k(const Layout& visual, const float* scores, const float* log_prior, const Picks& picks,
                  const Target& target);

// Blocks and teams for the samples of `visual`, and the rows that they keep for `picks` of one at the most: fills the
// sizes in `memory`.
cudaError_t size_rows(Dtype dtype, const Layout& visual, int64_t picks, const Target& target, RowMemory& memory);

cudaError_t greedy_on_rows(Dtype dtype, const Tokens& visual, const float* norms, int64_t dim, const float* scores,
                           const Densities& densities, const Selection& selection, const RowMemory& memory,
                           const Picks& picks, const Target& target);

// `element`: bytes of a feature. The picks in ascending order, to `sorted`; their tokens (slots.total, dim) to
// `tokens`.
cudaError_t gather(const Tokens& visual, int64_t dim, int64_t element, const Picks& picks, void* tokens,
                   int64_t* sorted_indices, float* sorted_gains, const Target& target);

} // namespace mi_pruner::cuda

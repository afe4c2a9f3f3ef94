// Which tokens are valid, and their weights in log form. A token's norm is NaN where its square is not finite,
// and 0 for a zero row; a null prior is uniform.
#pragma once

#include "cuda/reduce.cuh"

namespace mi_pruner::cuda {

#define MI_PRUNER_INFINITY __int_as_float(0x7f800000)
#define MI_PRUNER_NAN __int_as_float(0x7fc00000)

__device__ inline float norm_of(float square) {
  if (!(square < MI_PRUNER_INFINITY)) return MI_PRUNER_NAN;
  return square >= 0x1p-126f ? sqrtf(square) : 0.0f; // below the smallest normal number: a zero row
}

// log K of two tokens. Rounded before anything is added, everywhere: of a single token, l is then 0 and nothing else.
__device__ inline float log_kernel(float cosine, float kappa) { return (cosine - 1) * kappa; }

// log of the prior, not normalised, of token `at`; -infinity for an absent one. An infinite prior counts as the largest
// finite one; a denormal one is brought into the range of the logarithm.
__device__ inline float log_weight(const float* prior, int64_t at, float norm) {
  if (isnan(norm)) return -MI_PRUNER_INFINITY;
  if (prior == nullptr) return 0.0f;
  const float weight = prior[at];
  if (!(weight > 0)) return -MI_PRUNER_INFINITY;
  if (weight < 0x1p-60f) return logf(weight * 0x1p64f) - 44.3614195558365f; // log 2^64
  return logf(fminf(weight, 0x1.fffffep127f));
}

// log of the sum of the priors of a sample's valid tokens, -infinity where there are none: to all threads of the block.
__device__ inline float log_total(const float* prior, const float* norms, const Span& span, float* scratch) {
  float top = -MI_PRUNER_INFINITY, total = 0;
  for (int64_t i = threadIdx.x; i < span.count; i += blockDim.x)
    top = fmaxf(top, log_weight(prior, span.begin + i, norms[span.begin + i]));
  top = block_reduce<Largest>(top, scratch);
  const float shift = top == -MI_PRUNER_INFINITY ? 0.0f : top;
  for (int64_t i = threadIdx.x; i < span.count; i += blockDim.x)
    total += expf(log_weight(prior, span.begin + i, norms[span.begin + i]) - shift);
  total = block_reduce<Sum>(total, scratch);
  return top + logf(total > 0 ? total : 1.0f);
}

// log of the sum of `count` parts, by a whole warp: the same for a part's row in the Gram matrix and in a block of
// rows.
__device__ inline float log_of_parts(const LogSum* parts, int64_t count) {
  float top = -MI_PRUNER_INFINITY, total = 0;
  for (int64_t k = threadIdx.x % 32; k < count; k += 32)
    top = fmaxf(top, __ldcg(&parts[k].top));
  top = warp_reduce<Largest>(top);
  const float shift = top == -MI_PRUNER_INFINITY ? 0.0f : top;
  for (int64_t k = threadIdx.x % 32; k < count; k += 32)
    total += __ldcg(&parts[k].total) * expf(__ldcg(&parts[k].top) - shift);
  total = warp_reduce<Sum>(total);
  return top + logf(total > 0 ? total : 1.0f);
}

} // namespace mi_pruner::cuda

// Four neighbouring tokens of a sample and what a greedy step needs of them, in the registers of a thread, from log
// K: one home for the Gram matrix and for rows as needed.
#pragma once

#include "cuda/greedy/picks.cuh"
#include "cuda/greedy/step.cuh"

namespace mi_pruner::cuda {

constexpr int kQuad = 4; // tokens: one 16-byte read of a row of log K

// The score that a selection begins with: NaN where the token is not to be picked.
__device__ inline float start_score(float given, float log_prior) {
  return log_prior > -MI_PRUNER_INFINITY ? pickable(given) : MI_PRUNER_NAN;
}

struct TokenQuad {
  int first;
  float score[kQuad]; // NaN: not to be picked
  float rho[kQuad], log2_prior[kQuad];

  // Tokens `from` and following, before any was picked.
  __device__ void start(const float* scores, const float* priors, const Span& span, int from) {
    first = from;
#pragma unroll
    for (int e = 0; e < kQuad; ++e) {
      const bool inside = first + e < span.count;
      const float log_prior = inside ? priors[span.begin + first + e] : -MI_PRUNER_INFINITY,
                  given = inside ? scores[span.begin + first + e] : 0.0f;
      log2_prior[e] = log_prior * kLog2E;
      score[e] = start_score(given, log_prior);
      rho[e] = 0;
    }
  }

  __device__ bool has(int e) const { return !isnan(score[e]); }

  __device__ void remove(int pick) {
    const int place = pick - first;
#pragma unroll
    for (int e = 0; e < kQuad; ++e)
      if (place == e) score[e] = MI_PRUNER_NAN;
  }

  // `log_kernels` of the `picked`-th pick with these tokens. Those not to be picked are computed, too, and never looked
  // at: without branches, the four run side by side.
  __device__ void join(const float4& log_kernels, float log_z, float weight, Redundancy mode, int picked) {
    const float log_kernel[kQuad] = {log_kernels.x, log_kernels.y, log_kernels.z, log_kernels.w};
#pragma unroll
    for (int e = 0; e < kQuad; ++e)
      rho[e] = joined(rho[e], redundancy_of(log_kernel[e], log_z, log2_prior[e]), mode, picked, weight);
  }
};

// The largest gain of a thread's tokens, NaN where none is to be picked.
__device__ inline float most_of(const TokenQuad& tokens, float scale, float (&gain)[kQuad]) {
#pragma unroll
  for (int e = 0; e < kQuad; ++e)
    gain[e] = gain_from(tokens.score[e], tokens.rho[e], scale);
  return fmaxf(fmaxf(gain[0], gain[1]), fmaxf(gain[2], gain[3]));
}

} // namespace mi_pruner::cuda

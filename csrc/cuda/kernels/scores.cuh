// From cosines and normalisers to scores, by both marginals.
//
// Algorithm: a warp for four visual tokens runs over the text twice: for the largest l, then for the sums. The null
// word of the joint marginal joins both, with l = 0.
//
// Bytes: the cosines twice, from L2 where they fit. Flops: two exponentials a cosine. Bound by latency. Determinism: a
// lane's share of a sum depends on the sample's own counts alone; fixed trees across lanes.
#pragma once

#include "cuda/base/weights.cuh"

namespace mi_pruner::cuda {

constexpr int kScoreThreads = 256;
constexpr int kWarpScores = 4; // at the same time: most of a score is waiting
constexpr int kScoreRows = kScoreThreads / 32 * kWarpScores;

// The scores of kWarpScores visual tokens from their rows of cosines, `stride` apart, by a warp; of the first `tokens`
// of them: the others' mean nothing. `null_weight`: of the null word, whose l is 0; the other marginal has none.
__device__ inline void scores_of(const float* cosines, int64_t stride, int tokens, const float* log_z,
                                 const float* weight, int64_t count, float kappa, const float (&log_prior)[kWarpScores],
                                 bool joint, float null_weight, float (&score)[kWarpScores]) {
  const auto log_r = [&](int k, int64_t j) {
    return log_kernel(cosines[(k < tokens ? k : 0) * stride + j], kappa) - log_z[j];
  };
  float top[kWarpScores], mass[kWarpScores] = {}, moment[kWarpScores] = {};
#pragma unroll
  for (int k = 0; k < kWarpScores; ++k)
    top[k] = joint ? 0.0f : -MI_PRUNER_INFINITY;
#pragma unroll 1
  for (int64_t j = threadIdx.x % 32; j < count; j += 32) {
    if (!(weight[j] > 0)) continue;
#pragma unroll
    for (int k = 0; k < kWarpScores; ++k)
      top[k] = fmaxf(top[k], log_r(k, j));
  }
#pragma unroll
  for (int k = 0; k < kWarpScores; ++k)
    top[k] = warp_reduce<Largest>(top[k]);
#pragma unroll 1
  for (int64_t j = threadIdx.x % 32; j < count; j += 32) {
    if (!(weight[j] > 0)) continue;
#pragma unroll
    for (int k = 0; k < kWarpScores; ++k) {
      const float below = log_r(k, j) - top[k], density = weight[j] * exp_fast(below);
      mass[k] += density;                          // sum w r / exp(top)
      moment[k] = fmaf(density, below, moment[k]); // sum w r (l - top) / exp(top)
    }
  }
#pragma unroll
  for (int k = 0; k < kWarpScores; ++k) {
    mass[k] = warp_reduce<Sum>(mass[k]);
    moment[k] = warp_reduce<Sum>(moment[k]);
    const float mixture = fmaf(null_weight, expf(-top[k]) - mass[k], mass[k]); // q' / exp(top)
    const float bracket =
        joint ? (1 - null_weight) * (moment[k] - mass[k] * logf(mixture)) : fmaf(mass[k], top[k], moment[k]);
    score[k] = mass[k] > 0 ? expf(log_prior[k] + top[k]) * bracket : 0.0f; // 0: no valid text, or none that is near
  }
}

__global__ void __launch_bounds__(kScoreThreads)
    score_kernel(const Layout visual, const Layout text, const Similarities found, const Densities densities,
                 const bool joint, float* const scores, const unsigned programs) {
  const unsigned program = blockIdx.x % programs, sample = blockIdx.x / programs;
  const Span rows = span_of(visual, sample), columns = span_of(text, sample);
  rows.for_each_unowned(int64_t{program} * blockDim.x + threadIdx.x, int64_t{programs} * blockDim.x,
                        [&](int64_t token) { scores[token] = 0; });
  const int64_t row = int64_t{program} * kScoreRows + threadIdx.x / 32 * kWarpScores, token = rows.begin + row,
                left = rows.count - row;
  if (left <= 0) return;
  const int tokens = left < kWarpScores ? static_cast<int>(left) : kWarpScores;
  float log_prior[kWarpScores], score[kWarpScores] = {};
#pragma unroll
  for (int k = 0; k < kWarpScores; ++k)
    log_prior[k] = k < tokens ? densities.log_prior[token + k] : -MI_PRUNER_INFINITY;
  if (columns.count > 0) // without text there is no kappa; an absent token's reads need not wait for its prior
    scores_of(found.cosines + token * found.cosine_stride, found.cosine_stride, tokens,
              densities.text_log_z + columns.begin, densities.text_weight + columns.begin, columns.count,
              densities.kappa[sample], log_prior, joint, densities.null_weight[sample], score);
  if (threadIdx.x % 32 > 0) return;
#pragma unroll
  for (int k = 0; k < kWarpScores; ++k)
    if (k < tokens) scores[token + k] = log_prior[k] > -MI_PRUNER_INFINITY ? score[k] : 0.0f;
}

} // namespace mi_pruner::cuda

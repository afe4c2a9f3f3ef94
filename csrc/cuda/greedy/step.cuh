// The arithmetic of a greedy step: one home for all ways of selecting, so that they agree in every bit.
#pragma once

#include "cuda/base/weights.cuh"

namespace mi_pruner::cuda {

constexpr int kQuad = 4; // neighbouring tokens of a thread: one 16-byte read of a row

// R[i, s] = pi_i exp(l) l with l = log K(v_i, v_s) - log Z_s, of a valid token i; `log2_prior`: of pi_i.
__device__ inline float redundancy_of(float log_kernel, float log_z, float log2_prior) {
  const float log_r = log_kernel - log_z;
  return exp2_fast(fmaf(log_r, kLog2E, log2_prior)) * log_r;
}

// rho, 0 before any, once the `picked`-th pick (from 1) has joined; `weight`: of chain the pick's prior, else 1. NaN
// where either is.
__device__ inline float joined(float rho, float redundancy, Redundancy mode, int picked, float weight) {
  const float sum = fmaf(redundancy, weight, rho); // both computed: cheaper than a branch
  return mode == Redundancy::kMax && picked > 1 ? larger(rho, redundancy) : sum;
}

// What rho is multiplied by after `picked` picks.
__device__ inline float scale_of(const Selection& selection, int picked) {
  if (selection.redundancy != Redundancy::kMean || picked == 0) return selection.weight;
  return selection.weight / static_cast<float>(picked);
}

__device__ inline float gain_from(float score, float rho, float scale) { return fmaf(-scale, rho, score); }

} // namespace mi_pruner::cuda

// Which tokens are valid, and their weights in log form. A token's norm is NaN where its square is not finite,
// and 0 for a zero row; a null prior is uniform.
#pragma once

#include "cuda/base/reduce.cuh"

namespace mi_pruner::cuda {

#define MI_PRUNER_INFINITY __int_as_float(0x7f800000)
#define MI_PRUNER_NAN __int_as_float(0x7fc00000)

__device__ inline float norm_of(float square) {
  if (!(square < MI_PRUNER_INFINITY)) return MI_PRUNER_NAN;
  return square >= 0x1p-126f ? sqrtf(square) : 0.0f; // below the smallest normal number: a zero row
}

constexpr float kLog2E = 1.44269504f;

// exp in two instructions, of kernels: good to 2^-22 and to half a unit in the last place of x.
__device__ inline float exp_fast(float x) { return exp2_fast(x * kLog2E); }

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

// What is taken off exponents whose largest is `top`: nothing where there are none.
__device__ inline float shift_of(float top) { return top == -MI_PRUNER_INFINITY ? 0.0f : top; }

__device__ inline float log_of(const LogSum& sum) { return sum.top + logf(sum.total > 0 ? sum.total : 1.0f); }

// Logs of the sums of kRows rows of `count` parts, by a whole warp: the same for a row in the Gram matrix and in a
// block of rows, for any number of rows, and of parts that a lane holds in registers, kHeld.
template <int kHeld, int kRows>
__device__ void log_of_parts(const LogSum* const (&parts)[kRows], int64_t count, float (&log)[kRows]) {
  const int64_t lane = threadIdx.x % 32;
  LogSum held[kRows][kHeld], sum[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      held[r][k] = {-MI_PRUNER_INFINITY, 0};
      if (lane + 32 * k >= count) continue;
      const float2 part = __ldcg(reinterpret_cast<const float2*>(parts[r] + lane + 32 * k));
      held[r][k] = {part.x, part.y};
    }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    sum[r] = {-MI_PRUNER_INFINITY, 0};
#pragma unroll
    for (int k = 0; k < kHeld; ++k)
      sum[r].top = fmaxf(sum[r].top, held[r][k].top);
#pragma unroll 1
    for (int64_t k = lane + 32 * kHeld; k < count; k += 32)
      sum[r].top = fmaxf(sum[r].top, __ldcg(&parts[r][k].top));
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    sum[r].top = warp_reduce<Largest>(sum[r].top);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int k = 0; k < kHeld; ++k)
      sum[r].total += held[r][k].total * exp_fast(held[r][k].top - shift_of(sum[r].top));
#pragma unroll 1
    for (int64_t k = lane + 32 * kHeld; k < count; k += 32) {
      const float top = __ldcg(&parts[r][k].top);
      sum[r].total += __ldcg(&parts[r][k].total) * exp_fast(top - shift_of(sum[r].top));
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    sum[r].total = warp_reduce<Sum>(sum[r].total);
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    log[r] = log_of(sum[r]);
}

// Of one row, of which each lane has a part: the same.
__device__ inline float log_of_lanes(const LogSum& own) {
  LogSum sum{warp_reduce<Largest>(own.top), 0};
  sum.total = warp_reduce<Sum>(own.total * exp_fast(own.top - shift_of(sum.top)));
  return log_of(sum);
}

// Of one row.
template <int kHeld> __device__ float log_of_parts(const LogSum* parts, int64_t count) {
  float log[1];
  const LogSum* const row[1] = {parts};
  log_of_parts<kHeld>(row, count, log);
  return log[0];
}

} // namespace mi_pruner::cuda

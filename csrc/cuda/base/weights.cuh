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

// Log of the sum of `count` parts by a warp, load(k) each; a lane holds kHeld of them. The same for a row of the
// redundancies and one in a block of rows, whatever kHeld is.
template <int kHeld, typename Load> __device__ float log_of_parts(int64_t count, const Load& load) {
  const int64_t lane = threadIdx.x % 32;
  LogSum held[kHeld], sum{-MI_PRUNER_INFINITY, 0};
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    held[k] = lane + 32 * k < count ? load(lane + 32 * k) : LogSum{-MI_PRUNER_INFINITY, 0};
    sum.top = fmaxf(sum.top, held[k].top);
  }
#pragma unroll 1
  for (int64_t k = lane + 32 * kHeld; k < count; k += 32)
    sum.top = fmaxf(sum.top, load(k).top);
  sum.top = warp_reduce<Largest>(sum.top);
  const auto add = [&](const LogSum& part) { sum.total += part.total * exp_fast(part.top - shift_of(sum.top)); };
#pragma unroll
  for (int k = 0; k < kHeld; ++k)
    add(held[k]);
#pragma unroll 1
  for (int64_t k = lane + 32 * kHeld; k < count; k += 32)
    add(load(k));
  sum.total = warp_reduce<Sum>(sum.total);
  return log_of(sum);
}

// Of parts in memory, which other blocks may have left.
template <int kHeld> __device__ float log_of_parts(const LogSum* parts, int64_t count) {
  return log_of_parts<kHeld>(count, [&](int64_t k) {
    const float2 part = __ldcg(reinterpret_cast<const float2*>(parts + k));
    return LogSum{part.x, part.y};
  });
}

} // namespace mi_pruner::cuda

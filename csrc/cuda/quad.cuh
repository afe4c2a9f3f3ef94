// Four neighbouring tokens of a sample and what a greedy step needs of them, in the registers of a thread: one home for
// both ways of selecting.
#pragma once

#include "cuda/gain.cuh"

namespace mi_pruner::cuda {

constexpr int kQuad = 4; // tokens: one 16-byte read of a row of cosines

struct TokenQuad {
  int first;
  float score[kQuad], rho[kQuad], log_prior[kQuad];
  unsigned available; // a bit each; none beyond the sample's end

  // Tokens `from` and following, before any was picked.
  __device__ void start(const float* scores, const float* priors, const Span& span, int from) {
    first = from;
    available = 0;
#pragma unroll
    for (int e = 0; e < kQuad; ++e) {
      const bool inside = first + e < span.count;
      log_prior[e] = inside ? priors[span.begin + first + e] : -MI_PRUNER_INFINITY;
      score[e] = inside ? pickable(scores[span.begin + first + e]) : -MI_PRUNER_INFINITY;
      rho[e] = 0;
      if (log_prior[e] > -MI_PRUNER_INFINITY) available |= 1u << e;
    }
  }

  __device__ bool has(int e) const { return available >> e & 1; }

  __device__ unsigned rank(int e, float scale) const {
    return has(e) ? rank_of(gain_from(score[e], rho[e], scale)) : 0;
  }

  __device__ uint64_t key(int e, float scale) const {
    const uint64_t key = key_of(gain_from(score[e], rho[e], scale), first + e);
    return has(e) ? key : 0;
  }

  __device__ void remove(int pick) {
    const unsigned place = static_cast<unsigned>(pick - first);
    if (place < kQuad) available &= ~(1u << place);
  }

  // `cosines` of the `picked`-th pick with these tokens. Those not available are computed, too, and never looked at:
  // without branches, the four run side by side.
  __device__ void join(const float4& cosines, float log_z, float prior, const Selection& selection, int picked) {
    const float cosine[kQuad] = {cosines.x, cosines.y, cosines.z, cosines.w};
    float redundancy[kQuad];
#pragma unroll
    for (int e = 0; e < kQuad; ++e)
      redundancy[e] = redundancy_of(cosine[e], log_z, log_prior[e], selection.kappa);
#pragma unroll
    for (int e = 0; e < kQuad; ++e)
      rho[e] = joined(rho[e], redundancy[e], selection.redundancy, picked, prior);
  }
};

} // namespace mi_pruner::cuda

// The arithmetic of a greedy step and the order of picks: one home for both ways of selecting, so that they agree in
// every bit.
#pragma once

#include "cuda/weights.cuh"

namespace mi_pruner::cuda {

// Integers in the order of gains; -0 counts as 0. No gain has 0.
__device__ inline unsigned rank_of(float gain) {
  const unsigned bits = __float_as_uint(gain + 0.0f), sign = 0u - (bits >> 31);
  return bits ^ (sign | 0x80000000u);
}
__device__ inline float gain_of_rank(unsigned rank) {
  return __uint_as_float(rank & 0x80000000u ? rank & 0x7fffffffu : ~rank);
}

// Keys in the order of picks: larger gain first, then lower index; 0 is below every key.
__device__ inline uint64_t key_of(float gain, int64_t index) {
  return uint64_t{rank_of(gain)} << 32 | (0xffffffffu - static_cast<unsigned>(index));
}

__device__ inline float gain_of(uint64_t key) { return gain_of_rank(static_cast<unsigned>(key >> 32)); }

__device__ inline int64_t index_of(uint64_t key) { return 0xffffffffu - static_cast<unsigned>(key); }

// The largest key of a warp, to all lanes.
__device__ inline uint64_t warp_best(uint64_t key) {
  const unsigned high = static_cast<unsigned>(key >> 32), best = __reduce_max_sync(kFullWarp, high);
  const unsigned low = __reduce_max_sync(kFullWarp, high == best ? static_cast<unsigned>(key) : 0u);
  return uint64_t{best} << 32 | low;
}

// A score as the greedy step wants it.
__device__ inline float pickable(float score) { return isnan(score) ? -MI_PRUNER_INFINITY : score; }

// R[i, s] = pi_i exp(l) l with l = log K(v_i, v_s) - log Z_s, of a valid token i; `log2_prior`: of pi_i.
__device__ inline float redundancy_of(float log_kernel, float log_z, float log2_prior) {
  const float log_r = log_kernel - log_z;
  return exp2_fast(fmaf(log_r, kLog2E, log2_prior)) * log_r;
}

// rho once the `picked`-th pick (from 1) has joined; chain: `prior` is that of the pick.
__device__ inline float joined(float rho, float redundancy, Redundancy mode, int picked, float prior) {
  const float most = picked == 1 ? redundancy : fmaxf(rho, redundancy);
  const float sum = mode == Redundancy::kChain ? fmaf(redundancy, prior, rho) : rho + redundancy;
  return mode == Redundancy::kMax ? most : sum; // all computed: cheaper than branches
}

// What rho is multiplied by after `picked` picks.
__device__ inline float scale_of(const Selection& selection, int picked) {
  if (selection.redundancy != Redundancy::kMean || picked == 0) return selection.weight;
  return selection.weight / static_cast<float>(picked);
}

__device__ inline float gain_from(float score, float rho, float scale) { return fmaf(-scale, rho, score); }

// How many of its tokens a sample may pick. What a ratio allows is known where there are tokens.
__device__ inline int64_t limit_of(const Picks& picks, int64_t sample, const Span& tokens, const Span& slots) {
  int64_t limit = tokens.count < slots.count ? tokens.count : slots.count;
  const auto bound = [&](int64_t most) { limit = most < 0 ? 0 : most < limit ? most : limit; };
  if (picks.budget != nullptr) bound(picks.budget[sample]);
  if (picks.most_picks != nullptr && limit > 0) bound(picks.most_picks[sample]);
  return limit;
}

// -1 and -infinity in the slots from `used` on and in those that no sample owns, by `members` threads.
__device__ inline void clear_slots(const Picks& picks, const Span& slots, int64_t used, int64_t member,
                                   int64_t members) {
  const auto clear = [&](int64_t slot) {
    picks.indices[slot] = -1;
    picks.gains[slot] = -MI_PRUNER_INFINITY;
  };
  for (int64_t at = used + member; at < slots.count; at += members)
    clear(slots.begin + at);
  slots.for_each_unowned(member, members, clear);
}

} // namespace mi_pruner::cuda

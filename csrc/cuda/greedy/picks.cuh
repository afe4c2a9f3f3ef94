// The order of picks, how many there may be, and the slots that stay empty: one home for all ways of selecting.
#pragma once

#include "cuda/base/weights.cuh"

namespace mi_pruner::cuda {

// A score as a gain.
__device__ inline float pickable(float score) { return isnan(score) ? -MI_PRUNER_INFINITY : score; }

// The score that a selection begins with: NaN where the token is not to be picked.
__device__ inline float start_score(float given, float log_prior) {
  return log_prior > -MI_PRUNER_INFINITY ? pickable(given) : MI_PRUNER_NAN;
}

// A token and the rank of its gain, 0 where there is none.
struct alignas(8) Ranked {
  unsigned rank, index;
};

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

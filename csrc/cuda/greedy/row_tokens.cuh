// Which tokens of a sample are a thread's on the row path, and what it holds of them.
#pragma once

#include "cuda/base/paths.h"
#include "cuda/greedy/picks.cuh"
#include "cuda/greedy/step.cuh"
#include "cuda/tile/layout.cuh"

namespace mi_pruner::cuda {

constexpr int32_t kNoRow = -1, kPicked = -2; // in place of a token's row
constexpr int kRowWarps = kTileThreads / 32;
constexpr int kHeldQuads = kHeldTokens / kQuad;
constexpr int kChunk = 32 * kQuad; // neighbouring tokens: a warp's
static_assert(kClusterTokens == int64_t{kClusterBlocks} * kRowWarps * kHeldQuads * kChunk);

// Chunks of 128 tokens are dealt to `blocks` blocks in turns, and those of a block to its warps.
struct Deal {
  int64_t blocks, block;

  // Of the thread's k-th quad.
  __device__ int first(int k) const {
    const int64_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    return static_cast<int>(kChunk * (block + blocks * (warp + int64_t{kRowWarps} * k)) + kQuad * lane);
  }

  // Tokens before it are held in registers.
  __device__ int64_t held() const { return int64_t{kChunk} * kRowWarps * kHeldQuads * blocks; }

  __device__ bool gives_block(int64_t token) const { return token / kChunk % blocks == block; }

  __device__ bool gives_thread(int64_t token) const {
    const int64_t chunk = token / kChunk;
    return chunk % blocks == block && chunk / blocks % kRowWarps == threadIdx.x / 32 &&
           token % kChunk / kQuad == threadIdx.x % 32;
  }

  // Blocks that are given any of `count` tokens: the first ones.
  __device__ int64_t busy(int64_t count) const {
    const int64_t chunks = (count + kChunk - 1) / kChunk;
    return chunks < blocks ? chunks : blocks;
  }
};

// Four neighbouring tokens and what a greedy step needs of them, in the registers of a thread, from log K.
struct RowQuad {
  int first;
  float score[kQuad]; // NaN: not to be picked
  float rho[kQuad], log2_prior[kQuad];
  int32_t slot[kQuad]; // of the row

  // Tokens `from` and following, before any was picked.
  __device__ void start(const float* scores, const float* priors, const Span& span, int64_t from) {
    first = static_cast<int>(from);
#pragma unroll
    for (int e = 0; e < kQuad; ++e) {
      const bool inside = first + e < span.count;
      const float log_prior = inside ? priors[span.begin + first + e] : -MI_PRUNER_INFINITY,
                  given = inside ? scores[span.begin + first + e] : 0.0f;
      log2_prior[e] = log_prior * kLog2E;
      score[e] = start_score(given, log_prior);
      rho[e] = 0;
      slot[e] = has(e) ? kNoRow : kPicked;
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

  __device__ void load(const float* scores, const float* priors, const RowMemory& memory, const Span& span,
                       int64_t from) {
    start(scores, priors, span, from);
#pragma unroll
    for (int e = 0; e < kQuad; ++e) {
      slot[e] = kPicked;
      if (!has(e)) continue;
      slot[e] = __ldcg(memory.slot + span.begin + first + e); // other blocks may have written it
      rho[e] = __ldcg(memory.rho + span.begin + first + e);
      if (slot[e] == kPicked) score[e] = MI_PRUNER_NAN;
    }
  }

  __device__ void store(const RowMemory& memory, const Span& span) const {
#pragma unroll
    for (int e = 0; e < kQuad; ++e)
      if (first + e < span.count) {
        memory.slot[span.begin + first + e] = has(e) ? slot[e] : kPicked;
        memory.rho[span.begin + first + e] = rho[e];
      }
  }
};

// The largest gain of a thread's tokens, NaN where none is to be picked.
__device__ inline float most_of(const RowQuad& tokens, float scale, float (&gain)[kQuad]) {
#pragma unroll
  for (int e = 0; e < kQuad; ++e)
    gain[e] = gain_from(tokens.score[e], tokens.rho[e], scale);
  return fmaxf(fmaxf(gain[0], gain[1]), fmaxf(gain[2], gain[3]));
}

// The best of a thread's tokens, in ascending order: gains are compared as they are, and make one key.
template <int kQuads> __device__ Post best_of(const RowQuad (&quads)[kQuads], float scale) {
  float gain[kQuads][kQuad], most = MI_PRUNER_NAN;
#pragma unroll
  for (int k = 0; k < kQuads; ++k)
    most = fmaxf(most, most_of(quads[k], scale, gain[k]));
  int index = 0;
  int32_t slot = kNoRow;
#pragma unroll
  for (int at = kQuads * kQuad - 1; at >= 0; --at) {
    if (gain[at / kQuad][at % kQuad] != most) continue;
    index = quads[at / kQuad].first + at % kQuad;
    slot = quads[at / kQuad].slot[at % kQuad];
  }
  return {isnan(most) ? 0 : key_of(most, index), slot};
}

// The best of a warp's candidates, to all lanes: keys differ.
__device__ inline Post warp_best(const Post& mine) {
  const uint64_t key = warp_best(mine.key);
  const bool ours = key != 0 && mine.key == key;
  const unsigned place = __reduce_max_sync(kFullWarp, ours ? static_cast<unsigned>(mine.slot - kNoRow) : 0u);
  return {key, int64_t{place} + kNoRow};
}

} // namespace mi_pruner::cuda

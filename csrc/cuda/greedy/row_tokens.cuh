// Which tokens of a sample are a thread's on the row path, and what it holds of them.
#pragma once

#include "cuda/base/paths.h"
#include "cuda/greedy/token_quad.cuh"
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

struct RowQuad : TokenQuad {
  int32_t slot[kQuad];

  __device__ void start(const float* scores, const float* priors, const Span& span, int64_t from) {
    TokenQuad::start(scores, priors, span, from);
#pragma unroll
    for (int e = 0; e < kQuad; ++e)
      slot[e] = has(e) ? kNoRow : kPicked;
  }

  __device__ void load(const float* scores, const float* priors, const RowMemory& memory, const Span& span,
                       int64_t from) {
    TokenQuad::start(scores, priors, span, from);
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

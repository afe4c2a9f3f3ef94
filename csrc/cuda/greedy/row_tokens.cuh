// Which tokens of a sample are a thread's on the row path, and what it holds of them.
#pragma once

#include "cuda/base/paths.h"
#include "cuda/greedy/picks.cuh"
#include "cuda/greedy/step.cuh"
#include "cuda/tile/layout.cuh"

namespace mi_pruner::cuda {

constexpr int kRowWarps = kTileThreads / 32;
constexpr int kHeldQuads = kHeldTokens / kQuad;
constexpr int kChunk = 32 * kQuad; // neighbouring tokens: a warp's

// Chunks of 128 tokens are dealt to the blocks, 1 or kClusterBlocks, in turns, and those of a block to its warps.
struct Deal {
  bool clustered;
  int block;

  __device__ int blocks() const { return clustered ? kClusterBlocks : 1; }

  // Of the thread's k-th quad.
  __device__ int first(int k) const {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    return kChunk * (block + blocks() * (warp + kRowWarps * k)) + kQuad * lane;
  }

  // Warps that are dealt any of `count` tokens: the first ones, as they take turns.
  __device__ int warps(int64_t count) const {
    const int64_t chunks = (count + kChunk - 1) / kChunk, all = kRowWarps * blocks();
    return static_cast<int>(chunks < all ? chunks : all);
  }

  // Tokens before it are held in registers.
  __device__ int held() const { return kChunk * kRowWarps * kHeldQuads * blocks(); }

  // Whether no thread has more than so many quads of `count` tokens.
  __device__ bool within(int quads, int64_t count) const { return count <= kChunk * kRowWarps * quads * blocks(); }

  __device__ bool gives_block(unsigned token) const { return chunk_of(token) * blocks() + block == token / kChunk; }

  __device__ bool gives_thread(unsigned token) const { return gives_block(token) && thread_of(token) == threadIdx.x; }

  // Of the block that has the token: the thread, and which of its quads it is in.
  __device__ unsigned thread_of(unsigned token) const {
    return chunk_of(token) % kRowWarps * 32 + token % kChunk / kQuad;
  }
  __device__ unsigned quad_of(unsigned token) const { return chunk_of(token) / kRowWarps; }

private:
  __device__ unsigned chunk_of(unsigned token) const {
    return clustered ? token / (kChunk * kClusterBlocks) : token / kChunk;
  }
};

// Four neighbouring tokens and what a greedy step needs of them, in the registers of a thread, from log K.
struct RowQuad {
  float score[kQuad]; // NaN: not to be picked
  float rho[kQuad], log2_prior[kQuad];

  // Tokens `from` and following, before any was picked.
  __device__ void start(const float* scores, const float* priors, const Span& span, int from) {
#pragma unroll
    for (int e = 0; e < kQuad; ++e) {
      const bool inside = from + e < span.count;
      const float log_prior = inside ? priors[span.begin + from + e] : -MI_PRUNER_INFINITY,
                  given = inside ? scores[span.begin + from + e] : 0.0f;
      log2_prior[e] = log_prior * kLog2E;
      score[e] = start_score(given, log_prior);
      rho[e] = 0;
    }
  }

  __device__ bool has(int e) const { return !isnan(score[e]); }

  // `place`: of the pick among them, if it is one.
  __device__ void remove(int place) {
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

  // Once some were picked, which slot(e) tells.
  template <typename Slot>
  __device__ void load(const float* scores, const float* priors, const float* rhos, const Span& span, int from,
                       const Slot& slot) {
    start(scores, priors, span, from);
#pragma unroll
    for (int e = 0; e < kQuad; ++e)
      if (has(e)) {
        rho[e] = rhos[span.begin + from + e];
        if (slot(e) == kPicked) score[e] = MI_PRUNER_NAN;
      }
  }

  __device__ void store(float* rhos, const Span& span, int from) const {
#pragma unroll
    for (int e = 0; e < kQuad; ++e)
      if (from + e < span.count) rhos[span.begin + from + e] = rho[e];
  }

  // The largest gain, NaN where none is to be picked.
  __device__ float most(float scale, float (&gain)[kQuad]) const {
#pragma unroll
    for (int e = 0; e < kQuad; ++e)
      gain[e] = gain_from(score[e], rho[e], scale);
    return fmaxf(fmaxf(gain[0], gain[1]), fmaxf(gain[2], gain[3]));
  }
};

// A warp's candidate for the next pick, sent and read in one access.
struct alignas(16) Post {
  uint64_t key;
  unsigned slot;        // the number of its row, or kNoRow
  unsigned is_done = 0; // of the first warp: the product on offer is there
};

// The best of a warp's candidates, to all lanes: keys differ.
__device__ inline Post warp_best(const Post& mine) {
  const uint64_t key = warp_best(mine.key);
  return {key, __reduce_max_sync(kFullWarp, key != 0 && mine.key == key ? mine.slot : 0u)};
}

} // namespace mi_pruner::cuda

// From cosines to scores: normalisers over the visual tokens, then both marginals and the sum over the text.
//
// `normaliser_kernel`: a block for 4 text tokens of a sample and 2,048 of its rows first combines the parts of the
// bandwidth rule and of the prior in order, then takes the largest exponent of its rows, and the sum: of log Z of the
// text. Where a sample has more rows, the last of its blocks to end combines what they left. Further blocks of the
// launch, for 32 visual tokens each, combine the parts of the visual-visual normalisers.
//
// `score_kernel`: a warp for four visual tokens runs over the text twice: for the largest l, then for the sums.
//
// Bytes: the cosines three times, from L2 where they fit. Flops: two exponentials a cosine. Bound by latency.
// Determinism: a thread's share of a sum depends on the sample's own counts alone; fixed trees across threads; chunks
// of rows are combined in their order, whichever block ends last.
#pragma once

#include "cuda/weights.cuh"

namespace mi_pruner::cuda {

constexpr int kNormaliserThreads = 256; // more would wait longer for one another at each of the reductions in a row
constexpr int kNormaliserWarps = kNormaliserThreads / 32;
constexpr int kRowsApart = kNormaliserThreads / kTextGroup; // a text token's rows are shared among so many threads
constexpr int kOwnExponents = kChunkRows / kRowsApart;      // 32 of a thread, in registers
constexpr int kReadAtOnce = 8;                              // of them
constexpr int kLogZRows = 4 * kNormaliserWarps;
constexpr int kScoreThreads = 256;
constexpr int kWarpScores = 4; // at the same time: most of a score is waiting
constexpr int kScoreRows = kScoreThreads / 32 * kWarpScores;

struct DensityShared {
  float scratch[2][kMostWarps];
  float columns[kNormaliserWarps][kTextGroup];
  unsigned arrived;
};

// 1/h^2 by the rule, from the moments of the sample's own patches.
__device__ inline float kappa_by_rule(const Similarities& found, int64_t sample, int64_t rows, int64_t columns,
                                      float (&scratch)[2][kMostWarps]) {
  const unsigned across = static_cast<unsigned>((columns + kPatch - 1) / kPatch);
  const unsigned patches =
      static_cast<unsigned>((rows + kPatch - 1) / kPatch) * across; // 8 for a block before, at most
  const float* moments = found.moments + 3 * sample * found.row_patches * found.text_patches;
  const auto at = [&](unsigned k) { return moments + 3 * (k / across * found.text_patches + k % across); };
  float sums[2] = {}, squares = 0; // the number of pairs, and their sum
#pragma unroll 4
  for (unsigned k = threadIdx.x; k < patches; k += blockDim.x) {
    sums[0] += at(k)[0];
    sums[1] += at(k)[0] * at(k)[1];
  }
  block_reduce<Sum>(sums, scratch);
  const float number = fmaxf(sums[0], 1), mean = sums[1] / number;
#pragma unroll 4
  for (unsigned k = threadIdx.x; k < patches; k += blockDim.x) {
    const float off = at(k)[1] - mean;
    squares += at(k)[2] + at(k)[0] * off * off;
  }
  squares = block_reduce<Sum>(squares, scratch);
  return 1 / fmaxf(sqrtf(squares / number), 1e-4f);
}

// Reduces a thread's value with those of the other threads of its column, threadIdx % kTextGroup, to all of them.
template <typename Op> __device__ float column_reduce(float x, DensityShared& shared) {
  const int column = threadIdx.x % kTextGroup;
  for (int distance = 16; distance >= kTextGroup; distance /= 2)
    x = Op::apply(x, __shfl_xor_sync(kFullWarp, x, distance));
  if (threadIdx.x % 32 < kTextGroup) shared.columns[threadIdx.x / 32][column] = x;
  __syncthreads();
  static_assert(kNormaliserWarps * kTextGroup == 32);
  x = shared.columns[threadIdx.x % 32 / kTextGroup][column];
  for (int distance = 16; distance >= kTextGroup; distance /= 2)
    x = Op::apply(x, __shfl_xor_sync(kFullWarp, x, distance));
  __syncthreads();
  return x;
}

// What a block of the normalisers works on: 4 text tokens, of which this thread has one, and a chunk of the rows.
struct TextChunk {
  int64_t sample, group, chunk;
  Span rows, columns;

  __device__ int64_t column(int64_t k) const { return group * kTextGroup + k; }
  __device__ int64_t chunks() const { return (rows.count + kChunkRows - 1) / kChunkRows; }
};

// Of sum_i pi_i K(v_i, t_j) over the chunk's rows, for this thread's column j; `valid`: of a token.
__device__ inline LogSum text_part(const Tokens& visual, const Similarities& found, const TextChunk& at,
                                   float visual_total, bool valid, float kappa, DensityShared& shared) {
  const int64_t column = at.column(threadIdx.x % kTextGroup), first = at.chunk * kChunkRows;
  float exponent[kOwnExponents];
  const auto used = [&](int k) { return first + k * kRowsApart < at.rows.count; }; // by some thread
#pragma unroll
  for (int start = 0; start < kOwnExponents; start += kReadAtOnce) {
    float cosine[kReadAtOnce], norm[kReadAtOnce];
    const auto row = [&](int k) { return first + threadIdx.x / kTextGroup + (start + k) * kRowsApart; };
    if (used(start)) {
#pragma unroll
      for (int k = 0; k < kReadAtOnce; ++k) { // some more than once, so that none has to wait for a decision
        const int64_t token = at.rows.begin + (row(k) < at.rows.count ? row(k) : at.rows.count - 1);
        cosine[k] = found.cosines[token * found.cosine_stride + column];
        norm[k] = found.visual_norm[token];
      }
    }
#pragma unroll
    for (int k = 0; k < kReadAtOnce; ++k) {
      exponent[start + k] = -MI_PRUNER_INFINITY;
      if (!valid || row(k) >= at.rows.count) continue;
      const float weight = log_weight(visual.prior, at.rows.begin + row(k), norm[k]);
      if (weight > -MI_PRUNER_INFINITY) exponent[start + k] = log_kernel(cosine[k], kappa) + (weight - visual_total);
    }
  }
  LogSum part{-MI_PRUNER_INFINITY, 0};
#pragma unroll
  for (int k = 0; k < kOwnExponents; ++k)
    part.top = fmaxf(part.top, exponent[k]);
  part.top = column_reduce<Largest>(part.top, shared);
#pragma unroll
  for (int k = 0; k < kOwnExponents; ++k)
    if (used(k)) part.total += expf(exponent[k] - shift_of(part.top));
  part.total = column_reduce<Sum>(part.total, shared);
  return part;
}

// Whether all of the sample's other chunks have left their parts of these columns, which are then seen.
__device__ inline bool comes_last(const Similarities& found, const TextChunk& at, DensityShared& shared) {
  __syncthreads();
  if (threadIdx.x == 0)
    shared.arrived = add_acquire_release(found.arrivals + at.sample * found.text_groups + at.group, 1u);
  __syncthreads();
  return shared.arrived + 1 == at.chunks();
}

__device__ inline void normalise_text(const Tokens& visual, const Tokens& text, const Similarities& found,
                                      const Densities& densities, const TextChunk& at, float visual_total, float kappa,
                                      DensityShared& shared) {
  const auto weight_of = [&](int64_t column) {
    const int64_t token = at.columns.begin + column;
    return column < at.columns.count ? log_weight(text.prior, token, found.text_norm[token]) : -MI_PRUNER_INFINITY;
  };
  const int64_t own = at.column(threadIdx.x % kTextGroup);
  const bool valid = weight_of(own) > -MI_PRUNER_INFINITY;
  const LogSum part = text_part(visual, found, at, visual_total, valid, kappa, shared);
  LogSum* const parts = densities.text_parts + at.columns.begin * densities.chunks;
  if (at.chunks() > 1) {
    if (threadIdx.x < kTextGroup && own < at.columns.count) parts[own * densities.chunks + at.chunk] = part;
    if (!comes_last(found, at, shared)) return;
  }
  const float text_total =
      log_total(at.columns.count, [&](int64_t column) { return LogSum{weight_of(column), 1}; }, shared.scratch);
  const int64_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = at.column(warp);
  if (warp >= kTextGroup || column >= at.columns.count) return;
  const float log_z = at.chunks() > 1 ? log_of_parts(parts + column * densities.chunks, at.chunks()) : log_of(part);
  if (lane != warp) return; // the lane whose own column is the warp's
  const int64_t token = at.columns.begin + column;
  densities.text_log_z[token] = valid ? log_z : 0.0f;
  densities.text_weight[token] = valid ? expf(weight_of(column) - text_total) : 0.0f;
}

__device__ inline void normalise_visual(const Similarities& found, const Densities& densities, int64_t program,
                                        const Span& rows, float visual_total) {
  const int64_t tiles = (rows.count + kTileColumns - 1) / kTileColumns,
                first = program * kLogZRows + threadIdx.x / 32 * (kLogZRows / kNormaliserWarps);
#pragma unroll
  for (int k = 0; k < kLogZRows / kNormaliserWarps; ++k) {
    if (first + k >= rows.count) return;
    const int64_t token = rows.begin + first + k;
    const float log_z = log_of_parts(found.parts + token * found.visual_tiles, tiles);
    if (threadIdx.x % 32 == 0) densities.visual_log_z[token] = log_z - visual_total;
  }
}

// Of the chunk's rows.
__device__ inline void store_log_prior(const Tokens& visual, const Similarities& found, const Densities& densities,
                                       const TextChunk& at, float visual_total) {
  static_assert(kChunkRows == kNormaliserThreads * kReadAtOnce);
  float norm[kReadAtOnce];
  const auto row = [&](int k) { return at.chunk * kChunkRows + threadIdx.x + k * kNormaliserThreads; };
#pragma unroll
  for (int k = 0; k < kReadAtOnce; ++k)
    norm[k] = row(k) < at.rows.count ? found.visual_norm[at.rows.begin + row(k)] : 0.0f;
#pragma unroll
  for (int k = 0; k < kReadAtOnce; ++k) {
    if (row(k) >= at.rows.count) return;
    const int64_t token = at.rows.begin + row(k);
    const float weight = log_weight(visual.prior, token, norm[k]);
    densities.log_prior[token] = weight > -MI_PRUNER_INFINITY ? weight - visual_total : weight;
  }
}

// Blocks of a sample: text_groups (one at least) for each of `chunks`, then those of the visual-visual normalisers.
__global__ void __launch_bounds__(kNormaliserThreads, 3)
    normaliser_kernel(const Tokens visual, const Tokens text, const Similarities found, const float kappa,
                      const Densities densities, unsigned* const arrivals, const int64_t arrivals_count,
                      const unsigned text_programs, const unsigned visual_programs) {
  MI_PRUNER_SHARED(DensityShared, shared);
  const unsigned program = blockIdx.x % (text_programs + visual_programs),
                 sample = blockIdx.x / (text_programs + visual_programs),
                 chunks = static_cast<unsigned>(densities.chunks);
  if (blockIdx.x == 0)
    for (int64_t k = threadIdx.x; k < arrivals_count; k += blockDim.x)
      arrivals[k] = 0;
  const Span rows = span_of(visual.layout, sample);
  const bool of_text = program < text_programs;
  const int64_t first = of_text ? program % chunks * kChunkRows : int64_t{program - text_programs} * kLogZRows;
  if (first >= rows.count) return;
  const LogSum* const prior_parts = found.prior_parts + sample * found.row_patches;
  const float total =
      log_total((rows.count + kPatch - 1) / kPatch, [&](int64_t k) { return prior_parts[k]; }, shared.scratch);
  if (!of_text) return normalise_visual(found, densities, program - text_programs, rows, total);
  const TextChunk at{sample, program / chunks, program % chunks, rows, span_of(text.layout, sample)};
  if (program == 0 && threadIdx.x == 0) densities.log_total[sample] = total;
  if (at.group == 0) store_log_prior(visual, found, densities, at, total);
  if (at.column(0) >= at.columns.count) return;
  const float found_kappa =
      kappa > 0 ? kappa : kappa_by_rule(found, sample, rows.count, at.columns.count, shared.scratch);
  if (program == 0 && threadIdx.x == 0) densities.kappa[sample] = found_kappa;
  normalise_text(visual, text, found, densities, at, total, found_kappa, shared);
}

// The scores of kWarpScores visual tokens from their rows of cosines, `stride` apart, by a warp; of the first `tokens`
// of them: the others' mean nothing.
__device__ inline void scores_of(const float* cosines, int64_t stride, int tokens, const float* log_z,
                                 const float* weight, int64_t count, float kappa, const float (&log_prior)[kWarpScores],
                                 bool joint, float (&score)[kWarpScores]) {
  const auto log_r = [&](int k, int64_t j) {
    return log_kernel(cosines[(k < tokens ? k : 0) * stride + j], kappa) - log_z[j];
  };
  float top[kWarpScores], mass[kWarpScores] = {}, moment[kWarpScores] = {};
#pragma unroll
  for (int k = 0; k < kWarpScores; ++k)
    top[k] = -MI_PRUNER_INFINITY;
  for (int64_t j = threadIdx.x % 32; j < count; j += 32) {
    if (!(weight[j] > 0)) continue;
#pragma unroll
    for (int k = 0; k < kWarpScores; ++k)
      top[k] = fmaxf(top[k], log_r(k, j));
  }
#pragma unroll
  for (int k = 0; k < kWarpScores; ++k)
    top[k] = warp_reduce<Largest>(top[k]);
  for (int64_t j = threadIdx.x % 32; j < count; j += 32) {
    if (!(weight[j] > 0)) continue;
#pragma unroll
    for (int k = 0; k < kWarpScores; ++k) {
      const float below = log_r(k, j) - top[k], density = weight[j] * expf(below);
      mass[k] += density;                          // sum w r / exp(top)
      moment[k] = fmaf(density, below, moment[k]); // sum w r (l - top) / exp(top)
    }
  }
#pragma unroll
  for (int k = 0; k < kWarpScores; ++k) {
    mass[k] = warp_reduce<Sum>(mass[k]);
    moment[k] = warp_reduce<Sum>(moment[k]);
    const float bracket =
        joint ? moment[k] - mass[k] * logf(mass[k] > 0 ? mass[k] : 1.0f) : fmaf(mass[k], top[k], moment[k]);
    score[k] = top[k] > -MI_PRUNER_INFINITY ? expf(log_prior[k] + top[k]) * bracket : 0.0f; // else: no valid text
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
              densities.kappa[sample], log_prior, joint, score);
  if (threadIdx.x % 32 > 0) return;
#pragma unroll
  for (int k = 0; k < kWarpScores; ++k)
    if (k < tokens) scores[token + k] = log_prior[k] > -MI_PRUNER_INFINITY ? score[k] : 0.0f;
}

} // namespace mi_pruner::cuda

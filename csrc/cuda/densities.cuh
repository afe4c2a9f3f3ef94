// From cosines to scores: normalisers over the visual tokens, then both marginals and the sum over the text.
//
// `normaliser_kernel`: a block for 4 text tokens of a sample first combines the parts of the bandwidth rule in order,
// then runs over the sample's rows twice (largest exponent, sum): log Z of the text. Further blocks of the launch, for
// 128 visual tokens each, leave the normalised prior and combine the parts of the visual-visual normalisers.
//
// `score_kernel`: a warp for a visual token runs over the text twice: for the largest l, then for the sums.
//
// Bytes: the cosines four times, from L2 where they fit. Flops: two exponentials a cosine. Bound by L2 latency.
// Determinism: a thread's share of a sum depends on the sample's own counts alone; fixed trees across threads.
#pragma once

#include "cuda/weights.cuh"

namespace mi_pruner::cuda {

constexpr int kNormaliserThreads = 1024; // one block runs over a sample's rows: with 256 threads, 4 times as long
constexpr int kNormaliserColumns = 4;    // 16 bytes of a row: half a sector, and twice the blocks
constexpr int kPriorRows = 128;          // 4 a warp: 5 blocks for 576 tokens
constexpr int kScoreThreads = 256;
constexpr int kScoreRows = kScoreThreads / 32;

struct DensityShared {
  float scratch[kMostWarps];
  float columns[kMostWarps][kNormaliserColumns];
};

// 1/h^2 by the rule, from the moments of the sample's own tiles.
__device__ inline float kappa_by_rule(const Similarities& found, int64_t sample, int64_t rows, int64_t columns,
                                      float* scratch) {
  const unsigned across = static_cast<unsigned>((columns + kTileColumns - 1) / kTileColumns);
  const unsigned tiles = static_cast<unsigned>((rows + kTileRows - 1) / kTileRows) * across; // as many as blocks before
  const float* moments = found.moments + 3 * sample * found.row_tiles * found.text_tiles;
  const auto at = [&](unsigned k) { return moments + 3 * (k / across * found.text_tiles + k % across); };
  float number = 0, sum = 0, squares = 0;
  for (unsigned k = threadIdx.x; k < tiles; k += blockDim.x) {
    number += at(k)[0];
    sum += at(k)[0] * at(k)[1];
  }
  number = fmaxf(block_reduce<Sum>(number, scratch), 1);
  const float mean = block_reduce<Sum>(sum, scratch) / number;
  for (unsigned k = threadIdx.x; k < tiles; k += blockDim.x) {
    const float off = at(k)[1] - mean;
    squares += at(k)[2] + at(k)[0] * off * off;
  }
  squares = block_reduce<Sum>(squares, scratch);
  return 1 / fmaxf(sqrtf(squares / number), 1e-4f);
}

// Reduces a thread's value with those of the other threads of its column, threadIdx % kNormaliserColumns, to all of
// them.
template <typename Op> __device__ float column_reduce(float x, DensityShared& shared) {
  const int column = threadIdx.x % kNormaliserColumns;
  for (int distance = 16; distance >= kNormaliserColumns; distance /= 2)
    x = Op::apply(x, __shfl_xor_sync(kFullWarp, x, distance));
  if (threadIdx.x % 32 < kNormaliserColumns) shared.columns[threadIdx.x / 32][column] = x;
  __syncthreads();
  x = shared.columns[0][column];
  for (int warp = 1; warp < kNormaliserThreads / 32; ++warp)
    x = Op::apply(x, shared.columns[warp][column]);
  __syncthreads();
  return x;
}

// log sum_i pi_i K(v_i, t_j) over the sample's rows, for this thread's column j.
__device__ inline float text_log_z(const Tokens& visual, const Similarities& found, const Span& rows,
                                   float visual_total, int64_t column, bool inside, float kappa,
                                   DensityShared& shared) {
  const auto exponent = [&](int64_t i) {
    const int64_t token = rows.begin + i;
    const float weight = log_weight(visual.prior, token, found.visual_norm[token]);
    if (!inside || weight == -MI_PRUNER_INFINITY) return -MI_PRUNER_INFINITY;
    return log_kernel(found.cosines[token * found.cosine_stride + column], kappa) + (weight - visual_total);
  };
  const int64_t lane = threadIdx.x / kNormaliserColumns;
  float top = -MI_PRUNER_INFINITY, total = 0;
  for (int64_t i = lane; i < rows.count; i += kNormaliserThreads / kNormaliserColumns)
    top = fmaxf(top, exponent(i));
  top = column_reduce<Largest>(top, shared);
  const float shift = top == -MI_PRUNER_INFINITY ? 0.0f : top;
  for (int64_t i = lane; i < rows.count; i += kNormaliserThreads / kNormaliserColumns)
    total += expf(exponent(i) - shift);
  total = column_reduce<Sum>(total, shared);
  return top + logf(total > 0 ? total : 1.0f);
}

__device__ inline void normalise_text(const Tokens& visual, const Tokens& text, const Similarities& found, float kappa,
                                      const Densities& densities, int64_t sample, int64_t program, const Span& rows,
                                      float visual_total, DensityShared& shared) {
  const Span columns = span_of(text.layout, sample);
  if (kappa <= 0) kappa = kappa_by_rule(found, sample, rows.count, columns.count, shared.scratch);
  if (program == 0 && threadIdx.x == 0) densities.kappa[sample] = kappa;
  if (program * kNormaliserColumns >= columns.count) return;
  const float text_total = log_total(text.prior, found.text_norm, columns, shared.scratch);
  const int64_t column = program * kNormaliserColumns + threadIdx.x % kNormaliserColumns;
  const bool inside = column < columns.count;
  const int64_t token = columns.begin + (inside ? column : 0);
  const float weight = inside ? log_weight(text.prior, token, found.text_norm[token]) : -MI_PRUNER_INFINITY;
  const bool valid = weight > -MI_PRUNER_INFINITY;
  const float log_z = text_log_z(visual, found, rows, visual_total, column, valid, kappa, shared);
  if (inside && threadIdx.x < kNormaliserColumns) {
    densities.text_log_z[token] = valid ? log_z : 0.0f;
    densities.text_weight[token] = valid ? expf(weight - text_total) : 0.0f;
  }
}

__device__ inline void normalise_visual(const Tokens& visual, const Similarities& found, const Densities& densities,
                                        int64_t program, const Span& rows, float visual_total) {
  for (int64_t row = program * kPriorRows + threadIdx.x / 32; row < rows.count && row < (program + 1) * kPriorRows;
       row += kNormaliserThreads / 32) {
    const int64_t token = rows.begin + row;
    float log_z = 0;
    if (found.visual_tiles > 0)
      log_z = log_of_parts(found.parts + token * found.visual_tiles, (rows.count + kTileColumns - 1) / kTileColumns);
    if (threadIdx.x % 32 > 0) continue;
    const float weight = log_weight(visual.prior, token, found.visual_norm[token]);
    densities.log_prior[token] = weight > -MI_PRUNER_INFINITY ? weight - visual_total : weight;
    densities.visual_log_z[token] = log_z - visual_total;
  }
}

__global__ void __launch_bounds__(kNormaliserThreads)
    normaliser_kernel(const Tokens visual, const Tokens text, const Similarities found, const float kappa,
                      const Densities densities, unsigned* const arrivals, const int64_t arrivals_count,
                      const unsigned text_programs, const unsigned visual_programs) {
  MI_PRUNER_SHARED(DensityShared, shared);
  const unsigned program = blockIdx.x % (text_programs + visual_programs),
                 sample = blockIdx.x / (text_programs + visual_programs);
  if (blockIdx.x == 0)
    for (int64_t k = threadIdx.x; k < arrivals_count; k += blockDim.x)
      arrivals[k] = 0;
  const Span rows = span_of(visual.layout, sample);
  const bool of_text = program < text_programs;
  if (rows.count == 0 || (!of_text && int64_t{program - text_programs} * kPriorRows >= rows.count)) return;
  const float total = log_total(visual.prior, found.visual_norm, rows, shared.scratch);
  if (program == text_programs && threadIdx.x == 0) densities.log_total[sample] = total;
  if (of_text)
    normalise_text(visual, text, found, kappa, densities, sample, program, rows, total, shared);
  else
    normalise_visual(visual, found, densities, program - text_programs, rows, total);
}

// A visual token's score from its row of cosines, by a warp.
__device__ inline float score_of(const float* cosines, const float* log_z, const float* weight, int64_t count,
                                 float kappa, float log_prior, bool joint) {
  const auto log_r = [&](int64_t j) { return log_kernel(cosines[j], kappa) - log_z[j]; };
  float top = -MI_PRUNER_INFINITY, mass = 0, moment = 0;
  for (int64_t j = threadIdx.x % 32; j < count; j += 32)
    if (weight[j] > 0) top = fmaxf(top, log_r(j));
  top = warp_reduce<Largest>(top);
  if (top == -MI_PRUNER_INFINITY) return 0; // no valid text
  for (int64_t j = threadIdx.x % 32; j < count; j += 32) {
    if (!(weight[j] > 0)) continue;
    const float below = log_r(j) - top, density = weight[j] * expf(below);
    mass += density;                       // sum w r / exp(top)
    moment = fmaf(density, below, moment); // sum w r (l - top) / exp(top)
  }
  mass = warp_reduce<Sum>(mass);
  moment = warp_reduce<Sum>(moment);
  const float bracket = joint ? moment - mass * logf(mass > 0 ? mass : 1.0f) : fmaf(mass, top, moment);
  return expf(log_prior + top) * bracket;
}

__global__ void __launch_bounds__(kScoreThreads)
    score_kernel(const Layout visual, const Layout text, const Similarities found, const Densities densities,
                 const bool joint, float* const scores, const unsigned programs) {
  const unsigned program = blockIdx.x % programs, sample = blockIdx.x / programs;
  const Span rows = span_of(visual, sample), columns = span_of(text, sample);
  rows.for_each_unowned(int64_t{program} * blockDim.x + threadIdx.x, int64_t{programs} * blockDim.x,
                        [&](int64_t token) { scores[token] = 0; });
  const int64_t row = int64_t{program} * kScoreRows + threadIdx.x / 32, token = rows.begin + row;
  if (row >= rows.count) return;
  const float log_prior = densities.log_prior[token];
  float score = 0;
  if (log_prior > -MI_PRUNER_INFINITY && columns.count > 0) // without text there is no kappa
    score = score_of(found.cosines + token * found.cosine_stride, densities.text_log_z + columns.begin,
                     densities.text_weight + columns.begin, columns.count, densities.kappa[sample], log_prior, joint);
  if (threadIdx.x % 32 == 0) scores[token] = score;
}

} // namespace mi_pruner::cuda

// The normalisers: log Z of every text and visual token, the bandwidth rule, both priors.
//
// Algorithm: a block for 4 text tokens of a sample and 2,048 of its rows first combines the parts of the bandwidth rule
// and of the priors in order, then sums the exponentials of its rows, relative to the largest so far: for log Z of the
// text. Where a sample has more rows, the last of its blocks to end combines what they left. Further blocks of the
// launch make redundancies of products, a row a warp or, of long samples, a block, and yet others compute the scores
// (scores.cuh). The first block of a sample also leaves the weight of the null word, and how many picks a ratio of the
// valid visual tokens allows.
//
// Bytes: the cosines once, from L2 where they fit. Flops: an exponential a cosine. Bound by latency; what can be a loop
// is one, since most of the code runs once and has to be fetched. Determinism: a thread's share of a sum depends on the
// sample's own counts alone; fixed trees across threads; chunks of rows are combined in their order, whichever block
// ends last.
#pragma once

#include <utility>

#include "cuda/base/paths.h"
#include "cuda/greedy/step.cuh"
#include "cuda/kernels/scores.cuh"
#include "cuda/tile/rows.cuh"

namespace mi_pruner::cuda {

constexpr int kNormaliserThreads = 256; // more would wait longer for one another at each of the reductions in a row
constexpr int kNormaliserWarps = kNormaliserThreads / 32;
static_assert(kNormaliserThreads == kScoreThreads);         // in one launch
constexpr int kRowsApart = kNormaliserThreads / kTextGroup; // a text token's rows are shared among so many threads
constexpr int kThreadRows = kChunkRows / kRowsApart;        // 32 of a thread
constexpr int kReadAtOnce = 8;                              // of them
// Patches of a thread that are read once: of 12,288 rows and up to 32 text tokens, all; a fourth would be in memory.
constexpr int kHeldPatches = 3;

struct DensityShared {
  float first[4][kNormaliserWarps], second[4][kNormaliserWarps];
  float top[1][kNormaliserWarps], total[1][kNormaliserWarps]; // of the visual prior alone
  float columns[2][kNormaliserWarps][kTextGroup];
  unsigned arrived;
};

// What each block of a sample reckons for itself: the logs of the sums of both priors, 1/h^2 of the text's kernel, and
// how many text tokens are valid.
struct Totals {
  float visual, text, kappa, words;
};

template <int kEach> __device__ unsigned patches_of(int64_t tokens) {
  return static_cast<unsigned>((tokens + kEach - 1) / kEach);
}

// a / b, where it is most often a: a division is a hundred cycles of waiting.
__device__ inline unsigned quotient(unsigned a, unsigned b) { return b == 1 ? a : a / b; }

// A thread's share of `count` numbers that a block reads twice: the first kHeld of it are read at once, and held.
template <int kHeld, typename Load> class ReadTwice {
public:
  __device__ ReadTwice(unsigned count, const Load& load) : count_(count), load_(load) {
#pragma unroll
    for (int k = 0; k < kHeld; ++k)
      if (at(k) < count) held_[k] = load(at(k));
  }

  // In order.
  template <typename Use> __device__ void for_each(const Use& use) const {
#pragma unroll
    for (int k = 0; k < kHeld; ++k)
      if (at(k) < count_) use(held_[k]);
#pragma unroll 1
    for (unsigned k = at(kHeld); k < count_; k += kNormaliserThreads)
      use(load_(k));
  }

private:
  static __device__ unsigned at(int k) { return threadIdx.x + k * kNormaliserThreads; }

  const unsigned count_;
  const Load load_;
  decltype(std::declval<Load>()(0u)) held_[kHeld] = {};
};

struct Moments {
  float number, mean, squares;

  // Of the sample's own patches, `across` of them side by side.
  struct Load {
    const float* moments;
    unsigned across, stride;

    __device__ Moments operator()(unsigned k) const {
      const unsigned row = quotient(k, across);
      const float* const at = moments + 3 * (int64_t{row} * stride + (k - row * across));
      return {at[0], at[1], at[2]};
    }
  };
};

struct LoadPriorSum {
  const PriorPart* parts;
  __device__ LogSum operator()(unsigned k) const { return parts[k].sum; }
};

// The logs of a sample's text weights, not normalised; -infinity: absent, or beyond its text.
struct TextWeights {
  const float* weights;
  int64_t count;
  __device__ float operator()(int64_t column) const { return column < count ? weights[column] : -MI_PRUNER_INFINITY; }
};

// What the totals are reduced from, on its way from memory. All side by side: each would wait for it, and for the
// block.
class Summands {
public:
  // `kappa` <= 0: by the rule, from the moments.
  __device__ Summands(const Similarities& found, int64_t sample, int64_t rows, const TextWeights& text, float kappa)
      : kappa_(kappa), priors_(patches_of<kPatchRows>(rows), {found.prior_parts + sample * found.row_patches}),
        moments_(kappa > 0 ? 0 : patches_of<kPatchRows>(rows) * patches_of<kPatchColumns>(text.count),
                 {found.moments + 3 * sample * found.row_patches * found.text_patches,
                  patches_of<kPatchColumns>(text.count), static_cast<unsigned>(found.text_patches)}),
        text_(static_cast<unsigned>(text.count), text) {}

  __device__ Totals reduce(DensityShared& shared) const {
    // The largest weight of either prior; the number of pairs, and their sum.
    float first[4] = {-MI_PRUNER_INFINITY, -MI_PRUNER_INFINITY, 0, 0};
    priors_.for_each([&](const LogSum& sum) { first[0] = fmaxf(first[0], sum.top); });
    text_.for_each([&](float weight) { first[1] = fmaxf(first[1], weight); });
    moments_.for_each([&](const Moments& of) {
      first[2] += of.number;
      first[3] += of.number * of.mean;
    });
    block_reduce<kNormaliserWarps, Largest, Largest, Sum, Sum>(first, shared.first);
    const float number = fmaxf(first[2], 1), mean = first[3] / number;
    float second[4] = {};
    priors_.for_each([&](const LogSum& sum) { second[0] += sum.total * expf(sum.top - shift_of(first[0])); });
    text_.for_each([&](float weight) {
      second[1] += expf(weight - shift_of(first[1]));
      second[3] += weight > -MI_PRUNER_INFINITY ? 1.0f : 0.0f;
    });
    moments_.for_each([&](const Moments& of) {
      const float off = of.mean - mean;
      second[2] += of.squares + of.number * off * off;
    });
    block_reduce<kNormaliserWarps, Sum, Sum, Sum, Sum>(second, shared.second);
    return {log_of({first[0], second[0]}), log_of({first[1], second[1]}),
            kappa_ > 0 ? kappa_ : 1 / fmaxf(sqrtf(second[2] / number), 1e-4f), second[3]};
  }

private:
  const float kappa_;
  const ReadTwice<kHeldPatches, LoadPriorSum> priors_;
  const ReadTwice<kHeldPatches, Moments::Load> moments_;
  const ReadTwice<1, TextWeights> text_;
};

// log of the sum of the visual prior alone: the bits of `Summands`.
__device__ inline float prior_total(const Similarities& found, int64_t sample, int64_t rows, DensityShared& shared) {
  const ReadTwice<kHeldPatches, LoadPriorSum> priors(patches_of<kPatchRows>(rows),
                                                     {found.prior_parts + sample * found.row_patches});
  float top[1] = {-MI_PRUNER_INFINITY}, total[1] = {};
  priors.for_each([&](const LogSum& sum) { top[0] = fmaxf(top[0], sum.top); });
  block_reduce<kNormaliserWarps, Largest>(top, shared.top);
  priors.for_each([&](const LogSum& sum) { total[0] += sum.total * expf(sum.top - shift_of(top[0])); });
  block_reduce<kNormaliserWarps, Sum>(total, shared.total);
  return log_of({top[0], total[0]});
}

// What `ratio` of a sample's valid visual tokens is, by a whole warp: max(1, floor(ratio * valid + 0.5)).
__device__ inline int64_t share_of(double ratio, const Similarities& found, int64_t sample, int64_t rows) {
  const PriorPart* const parts = found.prior_parts + sample * found.row_patches;
  unsigned valid = 0;
#pragma unroll 8
  for (unsigned k = threadIdx.x % 32; k < patches_of<kPatchRows>(rows); k += 32)
    valid += parts[k].valid;
  const int64_t share = static_cast<int64_t>(ratio * __reduce_add_sync(kFullWarp, valid) + 0.5);
  return share > 1 ? share : 1;
}

// Reduces a thread's value with those of the other threads of its column, threadIdx % kTextGroup, to all of them.
template <typename Op> __device__ float column_reduce(float x, float (&scratch)[kNormaliserWarps][kTextGroup]) {
  const int column = threadIdx.x % kTextGroup;
  for (int distance = 16; distance >= kTextGroup; distance /= 2)
    x = Op::apply(x, __shfl_xor_sync(kFullWarp, x, distance));
  if (threadIdx.x % 32 < kTextGroup) scratch[threadIdx.x / 32][column] = x;
  __syncthreads();
  static_assert(kNormaliserWarps * kTextGroup == 32);
  x = scratch[threadIdx.x % 32 / kTextGroup][column];
  for (int distance = 16; distance >= kTextGroup; distance /= 2)
    x = Op::apply(x, __shfl_xor_sync(kFullWarp, x, distance));
  return x;
}

// What a block of the normalisers works on: 4 text tokens, of which this thread has one, and a chunk of the rows.
struct TextChunk {
  unsigned sample, group, chunk;
  Span rows, columns;

  __device__ unsigned column(unsigned k) const { return group * kTextGroup + k; }
  __device__ unsigned chunks() const { return static_cast<unsigned>((rows.count + kChunkRows - 1) / kChunkRows); }
  __device__ unsigned row(unsigned k) const { // the thread's k-th
    return chunk * static_cast<unsigned>(kChunkRows) + threadIdx.x / kTextGroup + k * kRowsApart;
  }
};

// Rows of a thread's column, read together.
struct RowBatch {
  float cosine[kReadAtOnce], weight[kReadAtOnce];

  // The thread's rows from its `start`-th on; where there are no more, the last one again: nothing has to wait for what
  // is read.
  __device__ void load(const Similarities& found, const TextChunk& at, int start) {
    const float* const cosines =
        found.cosines + at.rows.begin * found.cosine_stride + at.column(threadIdx.x % kTextGroup);
    const float* const weights = found.visual_log_weight + at.rows.begin;
    const unsigned last = static_cast<unsigned>(at.rows.count - 1), first = at.row(start),
                   stride = static_cast<unsigned>(found.cosine_stride) * unsigned{sizeof(float)};
#pragma unroll
    for (int k = 0; k < kReadAtOnce; ++k) {
      const unsigned row = first + k * kRowsApart, read = row < last ? row : last;
      cosine[k] = *reinterpret_cast<const float*>(at_multiple(cosines, read, stride));
      weight[k] = weights[read];
    }
  }
};

// Of sum_i pi_i K(v_i, t_j) over the chunk's rows, for this thread's column j; `valid`: of a token.
__device__ inline LogSum text_part(const Similarities& found, const TextChunk& at, RowBatch& batch,
                                   const Totals& totals, bool valid, DensityShared& shared) {
  LogSum part{-MI_PRUNER_INFINITY, 0};
#pragma unroll 1
  for (int start = 0; start < kThreadRows && at.chunk * kChunkRows + start * kRowsApart < at.rows.count;
       start += kReadAtOnce) { // as long as some thread has any
    if (start > 0) batch.load(found, at, start);
    float exponent[kReadAtOnce], top = part.top;
#pragma unroll
    for (int k = 0; k < kReadAtOnce; ++k) {
      const float log_k = log_kernel(batch.cosine[k], totals.kappa);
      const bool there = valid && at.row(start + k) < at.rows.count && batch.weight[k] > -MI_PRUNER_INFINITY;
      exponent[k] = there ? log_k + (batch.weight[k] - totals.visual) : -MI_PRUNER_INFINITY;
      top = fmaxf(top, exponent[k]);
    }
    part.total *= exp_fast(part.top - shift_of(top));
#pragma unroll
    for (int k = 0; k < kReadAtOnce; ++k)
      part.total += exp_fast(exponent[k] - shift_of(top));
    part.top = top;
  }
  const float top = column_reduce<Largest>(part.top, shared.columns[0]);
  return {top, column_reduce<Sum>(part.total * exp_fast(part.top - shift_of(top)), shared.columns[1])};
}

// Whether all of the sample's other chunks have left their parts of these columns, which are then seen.
__device__ inline bool comes_last(const Similarities& found, const TextChunk& at, DensityShared& shared) {
  __syncthreads();
  if (threadIdx.x == 0)
    shared.arrived = add_acquire_release(found.arrivals + at.sample * found.text_groups + at.group, 1u);
  __syncthreads();
  return shared.arrived + 1 == at.chunks();
}

__device__ inline void normalise_text(const Similarities& found, const Densities& densities, const TextChunk& at,
                                      RowBatch& batch, const Totals& totals, float own_weight, DensityShared& shared) {
  const int64_t own = at.column(threadIdx.x % kTextGroup);
  const bool valid = own_weight > -MI_PRUNER_INFINITY;
  const LogSum part = text_part(found, at, batch, totals, valid, shared);
  LogSum* const parts = densities.text_parts + at.columns.begin * densities.chunks;
  if (at.chunks() > 1) {
    if (threadIdx.x < kTextGroup && own < at.columns.count) parts[own * densities.chunks + at.chunk] = part;
    if (!comes_last(found, at, shared)) return;
  }
  const int64_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = at.column(warp);
  if (warp >= kTextGroup || column >= at.columns.count) return;
  const float log_z = at.chunks() > 1 ? log_of_parts<1>(parts + column * densities.chunks, at.chunks()) : log_of(part);
  if (lane != warp) return; // the lane whose own column is the warp's
  uint64_t* const terms = found.terms + first_term(at.sample, at.columns.begin);
  leave(terms + kSampleTerms + column, valid ? log_z : 0.0f, valid ? expf(own_weight - totals.text) : 0.0f);
}

union alignas(16) NormaliserShared {
  DensityShared densities;
  ScoreShared scores;
};

// What makes rows of R of a block, in its shared memory: norms, their inverses and log weights of a sample's visual
// tokens, the latter not normalised, and, for each warp that works by itself or for all together, the products of a
// row, on their way while the block reckons with the priors.
class RedundancyMaker {
public:
  static constexpr unsigned warps_of_row(int64_t longest) { return longest <= kShortSample ? 1 : kNormaliserWarps; }
  static constexpr size_t bytes(int64_t longest) {
    const unsigned rows = kNormaliserWarps / warps_of_row(longest);
    return (3 + rows) * stride_of(longest) * sizeof(float) + rows * kMostParts * sizeof(LogSum);
  }

  // `warps`: of a row.
  __device__ RedundancyMaker(float* start, const Similarities& found, const Span& rows, int64_t longest, unsigned warps)
      : found_(found), rows_(rows), start_(start), stride_(stride_of(longest)), warps_(warps),
        warp_(warps == 1 ? 0 : threadIdx.x / 32), row_(warps == 1 ? threadIdx.x / 32 : 0) {}

  // Which of the rows that a block makes at a time this thread's is.
  __device__ unsigned row() const { return row_; }

  __device__ void fetch_tokens() const {
    for (unsigned k = threadIdx.x; k < stride_; k += kNormaliserThreads) {
      const float norm = k < rows_.count ? found_.visual_norm[rows_.begin + k] : 0;
      norms()[k] = norm;
      inverses()[k] = 1 / norm;
      weights()[k] = k < rows_.count ? found_.visual_log_weight[rows_.begin + k] : -MI_PRUNER_INFINITY;
    }
  }

  __device__ void fetch_row(unsigned row) const {
    const float* const from = found_.gram + (rows_.begin + row) * found_.gram_stride;
    if (row < rows_.count)
      for_each_part([&](unsigned part) {
#pragma unroll
        for (int k = 0; k < kLaneQuads; ++k)
          if (const unsigned at = part + 4 * lane_quad(k); at < rows_.count)
            copy_async(shared_address(products() + at), from + at);
      });
    commit_copies();
  }

  // All of the row's warps have come to this.
  __device__ void meet() const {
    if (warps_ == 1)
      __syncwarp();
    else
      __syncthreads();
  }

  // R in place of the products, once the block has met; `total`: log of the sum of the prior.
  __device__ void store(unsigned own, float total) const {
    wait_for_copies<0>();
    const unsigned count = static_cast<unsigned>(rows_.count);
    const float norm = norms()[own], inverse = inverses()[own];
    for_each_part([&](unsigned part) {
      LaneRow x;
#pragma unroll
      for (int k = 0; k < kLaneQuads; ++k) {
        float* const four = products() + part + 4 * lane_quad(k);
        const unsigned at = part + 4 * lane_quad(k);
        x[k] = each(four_of(four), four_of(norms() + at), four_of(inverses() + at),
                    [&](float product, float other, float other_inverse) {
                      return log_kernel(cosine_of(product, norm * other, inverse * other_inverse), found_.kappa);
                    });
        *reinterpret_cast<float4*>(four) = x[k];
      }
      const LogSum sum = part_of(x, weights() + part);
      if (threadIdx.x % kRowLanes == 0) parts()[part / kTileColumns] = sum;
    });
    meet();
    const float log_z =
        log_of_parts<kMostParts / 32>(stride_ / kTileColumns, [&](int64_t k) { return parts()[k]; }) - total;
    float* const to = found_.gram + (rows_.begin + own) * found_.gram_stride;
    for_each_part([&](unsigned part) {
#pragma unroll
      for (int k = 0; k < kLaneQuads; ++k) {
        const unsigned at = part + 4 * lane_quad(k);
        const float4 log_ks = four_of(products() + at), weight = four_of(weights() + at);
        const auto of = [&](float log_k, float log_weight) { // anything, of tokens that are absent
          return redundancy_of(log_k, log_z, (log_weight - total) * kLog2E);
        };
        if (at >= count) continue;
        *reinterpret_cast<float4*>(to + at) = each(log_ks, weight, of);
        if (own - at < 4) to[own] = MI_PRUNER_NAN;
      }
    });
  }

private:
  // Columns that a warp takes at a time, four quads of each 64 by 8 lanes.
  static constexpr unsigned kTurn = 32 / kRowLanes * kTileColumns, kMostParts = kGramTokens / kTileColumns;

  static __host__ __device__ constexpr unsigned stride_of(int64_t longest) { // in whole turns of a warp
    return static_cast<unsigned>((longest + kTurn - 1) / kTurn * kTurn);
  }

  __device__ float* norms() const { return start_; }
  __device__ float* inverses() const { return start_ + stride_; }
  __device__ float* weights() const { return start_ + 2 * stride_; }
  __device__ float* products() const { return start_ + (3 + row_) * stride_; }
  __device__ LogSum* parts() const {
    return reinterpret_cast<LogSum*>(start_ + (3 + kNormaliserWarps / warps_) * stride_) + row_ * kMostParts;
  }

  // f(first token) for each 64 of the warp's: what a lane has left it finds again.
  template <typename F> __device__ void for_each_part(const F& f) const {
#pragma unroll 1
    for (unsigned turn = warp_ * kTurn; turn < stride_; turn += warps_ * kTurn)
      f(turn + threadIdx.x % 32 / kRowLanes * kTileColumns);
  }

  const Similarities& found_;
  const Span& rows_;
  float* const start_;
  const unsigned stride_, warps_, warp_, row_; // of the row: how many, which
};

// By a block of those of the visual tokens: `each` rows of each that it makes at a time. `shared`: and what follows it.
__device__ inline void make_redundancies(const Similarities& found, unsigned sample, unsigned program, unsigned each,
                                         unsigned warps, const Span& rows, int64_t longest, NormaliserShared& shared) {
  const unsigned block = program * each * (kNormaliserWarps / warps);
  if (block >= rows.count) return;
  const RedundancyMaker maker(reinterpret_cast<float*>(&shared + 1), found, rows, longest, warps);
  const unsigned first = block + maker.row() * each,
                 end = first + each < rows.count ? first + each : static_cast<unsigned>(rows.count);
  maker.fetch_row(first);
  maker.fetch_tokens();
  const float total = prior_total(found, sample, rows.count, shared.densities);
#pragma unroll 1
  for (unsigned row = first; row < end; ++row) {
    if (row > first) {
      maker.meet(); // all have seen the parts of the row before
      maker.fetch_row(row);
    }
    maker.store(row, total);
  }
}

// Of the chunk's rows.
__device__ inline void store_log_prior(const Similarities& found, const Densities& densities, const TextChunk& at,
                                       float visual_total) {
  const int64_t end = (at.chunk + 1) * kChunkRows < at.rows.count ? (at.chunk + 1) * kChunkRows : at.rows.count;
#pragma unroll 4
  for (int64_t row = at.chunk * kChunkRows + threadIdx.x; row < end; row += kNormaliserThreads)
    densities.log_prior[at.rows.begin + row] = log_prior_of(found.visual_log_weight[at.rows.begin + row], visual_total);
}

// Blocks of a sample: text_groups (one at least) for each of the chunks; those of the redundancies; those of the
// scores.
struct Programs {
  unsigned text, visual, scores;
  unsigned rows, row_warps; // that a warp of those of the visual tokens makes; warps that make one
};

// First the blocks of all samples' text, last those of the scores: these wait for the former, which wait for nobody,
// and blocks start in the order of their index. Of many samples, most then find what they would wait for.
__global__ void __launch_bounds__(kNormaliserThreads, 4)
    normaliser_kernel(const Layout visual, const Layout text, const Similarities found, const float kappa,
                      const double ratio, const Densities densities, const Scoring scoring, unsigned* const counters,
                      const int64_t counter_count, const Programs programs) {
  MI_PRUNER_SHARED(NormaliserShared, shared);
  if (blockIdx.x == 0)
    for (int64_t k = threadIdx.x; k < counter_count; k += blockDim.x)
      counters[k] = 0;
  const unsigned samples = static_cast<unsigned>(visual.samples), chunks = static_cast<unsigned>(densities.chunks);
  unsigned block = blockIdx.x, each = programs.text;
  const bool of_text = block < samples * each;
  bool of_scores = false;
  if (!of_text) {
    block -= samples * each;
    of_scores = block >= samples * programs.visual;
    if (of_scores) block -= samples * programs.visual;
    each = of_scores ? programs.scores : programs.visual;
  }
  const unsigned sample = samples == 1 ? 0 : block / each, program = block - sample * each;
  const Span rows = span_of(visual, sample), columns = of_text || of_scores ? span_of(text, sample) : Span{};
  if (of_scores) return score_rows(found, sample, program, each, rows, columns, scoring, shared.scores);
  if (!of_text)
    return make_redundancies(found, sample, program, programs.rows, programs.row_warps, rows, visual.longest, shared);
  const unsigned group = quotient(program, chunks), chunk = program - group * chunks;
  if (chunk * kChunkRows >= rows.count) return;
  const TextWeights text_weights{found.text_log_weight + columns.begin, columns.count};
  const TextChunk at{sample, group, chunk, rows, columns};
  const Summands summands(found, sample, rows.count, text_weights, kappa);
  const bool any = at.column(0) < columns.count;
  const float own_weight = text_weights(at.column(threadIdx.x % kTextGroup));
  RowBatch batch{};
  if (any) batch.load(found, at, 0); // on their way meanwhile
  const Totals totals = summands.reduce(shared.densities);
  if (program == 0 && threadIdx.x == 0) {
    densities.log_total[sample] = totals.visual;
    uint64_t* const terms = found.terms + first_term(sample, columns.begin);
    leave(terms, totals.kappa, 1 / (totals.words + 1));
    leave(terms + 1, totals.visual, 0);
  }
  if (any) normalise_text(found, densities, at, batch, totals, own_weight, shared.densities);
  // Last: no block of this launch waits for it.
  if (at.group == 0) store_log_prior(found, densities, at, totals.visual);
  if (program == 0 && threadIdx.x < 32 && densities.most_picks != nullptr) {
    const int64_t share = share_of(ratio, found, sample, rows.count);
    if (threadIdx.x == 0) densities.most_picks[sample] = share;
  }
}

} // namespace mi_pruner::cuda

// From cosines and normalisers to scores, by both marginals: blocks of the launch that also computes the normalisers.
//
// Algorithm: a block of 32 visual tokens has its cosines on their way, and waits for the two numbers of each text
// token, and the four of the sample, that blocks of lower index leave. Each word of two is its own flag, which costs
// neither a fence nor a counter. Then a warp for four visual tokens runs over the text twice: for the largest l, then
// for the sums. The null word of the joint marginal joins both, with l = 0.
//
// Bytes: the cosines once, twice beyond 32 text tokens, from L2 where they fit. Flops: two exponentials a cosine. Bound
// by latency. Determinism: a lane's share of a sum depends on the sample's own counts alone; fixed trees across lanes.
#pragma once

#include "cuda/base/weights.cuh"

namespace mi_pruner::cuda {

constexpr int kScoreThreads = 256;
constexpr int kWarpScores = 4; // at the same time: most of a score is waiting
constexpr int kScoreRows = kScoreThreads / 32 * kWarpScores;

struct Term {
  float first, second;
};

struct ScoreShared {
  Term sample[kSampleTerms], text[kScoreThreads];
};

__device__ inline void leave(uint64_t* term, float first, float second) {
  store_relaxed(term, uint64_t{__float_as_uint(second)} << 32 | __float_as_uint(first));
}

__device__ inline Term wait_for(const uint64_t* term) {
  uint64_t word;
  while ((word = load_relaxed(term)) == kNotThere)
    wait_a_moment();
  return {__uint_as_float(static_cast<unsigned>(word)), __uint_as_float(static_cast<unsigned>(word >> 32))};
}

// Normalised; -infinity: absent.
__device__ inline float log_prior_of(float log_weight, float log_total) {
  return log_weight > -MI_PRUNER_INFINITY ? log_weight - log_total : log_weight;
}

// The text terms of a sample, a tile of them in shared memory, and this warp's cosines.
class ScoreText {
public:
  // `terms`: of the text. `row`: the warp's first, of the sample; where there are no more rows, the last one again.
  __device__ ScoreText(const Similarities& found, const uint64_t* terms, const Span& rows, const Span& columns,
                       unsigned row, ScoreShared& shared)
      : terms_(terms), cosines_(found.cosines + rows.begin * found.cosine_stride),
        stride_(static_cast<unsigned>(found.cosine_stride) * unsigned{sizeof(float)}), row_(row),
        last_(static_cast<unsigned>(rows.count - 1)), count_(static_cast<unsigned>(columns.count)), shared_(shared) {
    if (threadIdx.x % 32 < count_) load(threadIdx.x % 32);
  }

  // f(log Z, weight, cosines) for the lane's valid text tokens; `again`: not for the first time.
  template <typename F> __device__ void for_each(bool again, const F& f) {
#pragma unroll 1
    for (unsigned first = 0; first < count_; first += kScoreThreads) {
      if (!again || count_ > kScoreThreads) stage(first, again || first > 0);
#pragma unroll 1
      for (unsigned k = threadIdx.x % 32; k < kScoreThreads && first + k < count_; k += 32) {
        const Term term = shared_.text[k];
        if (!(term.second > 0)) continue;
        if (first + k != held_) load(first + k);
        f(term.first, term.second, cosine_);
      }
    }
  }

private:
  __device__ void stage(unsigned first, bool used) {
    if (used) __syncthreads(); // all have read what was there
    if (first + threadIdx.x < count_) shared_.text[threadIdx.x] = wait_for(terms_ + first + threadIdx.x);
    __syncthreads();
  }

  __device__ void load(unsigned column) {
    held_ = column;
#pragma unroll
    for (unsigned k = 0; k < kWarpScores; ++k)
      cosine_[k] =
          *reinterpret_cast<const float*>(at_multiple(cosines_ + column, row_ + k < last_ ? row_ + k : last_, stride_));
  }

  const uint64_t* const terms_;
  const float* const cosines_;
  const unsigned stride_, row_, last_, count_;
  ScoreShared& shared_;
  unsigned held_ = 0;
  float cosine_[kWarpScores] = {}; // of the text token `held_`
};

// Those of kScoreRows visual tokens, and the block's share of what no sample owns.
__device__ inline void score_rows(const Similarities& found, unsigned sample, unsigned program, unsigned programs,
                                  const Span& rows, const Span& columns, const Scoring& scoring, ScoreShared& shared) {
  rows.for_each_unowned(int64_t{program} * blockDim.x + threadIdx.x, int64_t{programs} * blockDim.x,
                        [&](int64_t token) { scoring.scores[token] = 0; });
  if (int64_t{program} * kScoreRows >= rows.count) return;
  const unsigned lane = threadIdx.x % 32, row = program * kScoreRows + threadIdx.x / 32 * kWarpScores;
  const uint64_t* const terms = found.terms + first_term(sample, columns.begin);
  ScoreText text(found, terms + kSampleTerms, rows, columns, row, shared);
  const bool own = lane < kWarpScores && row + lane < rows.count; // this lane's is the score of row + lane
  const float log_weight = own ? found.visual_log_weight[rows.begin + row + lane] : 0;
  // Without text nothing comes, and the sample's are not used.
  if (columns.count > 0 && threadIdx.x >= kScoreThreads - kSampleTerms) {
    const unsigned k = kScoreThreads - 1 - threadIdx.x;
    shared.sample[k] = wait_for(terms + k);
  }
  float top[kWarpScores], mass[kWarpScores] = {}, moment[kWarpScores] = {};
#pragma unroll
  for (int k = 0; k < kWarpScores; ++k)
    top[k] = scoring.joint ? 0.0f : -MI_PRUNER_INFINITY;
  text.for_each(false, [&](float log_z, float, const float (&cosine)[kWarpScores]) {
    const float kappa = shared.sample[0].first;
#pragma unroll
    for (int k = 0; k < kWarpScores; ++k)
      top[k] = fmaxf(top[k], log_kernel(cosine[k], kappa) - log_z);
  });
#pragma unroll
  for (int k = 0; k < kWarpScores; ++k)
    top[k] = warp_reduce<Largest>(top[k]);
  text.for_each(true, [&](float log_z, float weight, const float (&cosine)[kWarpScores]) {
    const float kappa = shared.sample[0].first;
#pragma unroll
    for (int k = 0; k < kWarpScores; ++k) {
      const float below = log_kernel(cosine[k], kappa) - log_z - top[k], density = weight * exp_fast(below);
      mass[k] += density;                          // sum w r / exp(top)
      moment[k] = fmaf(density, below, moment[k]); // sum w r (l - top) / exp(top)
    }
  });
  float own_top = 0, own_mass = 0, own_moment = 0;
#pragma unroll
  for (int k = 0; k < kWarpScores; ++k) {
    mass[k] = warp_reduce<Sum>(mass[k]);
    moment[k] = warp_reduce<Sum>(moment[k]);
    if (lane != static_cast<unsigned>(k)) continue;
    own_top = top[k];
    own_mass = mass[k];
    own_moment = moment[k];
  }
  if (!own) return;
  const float null_weight = shared.sample[0].second, log_prior = log_prior_of(log_weight, shared.sample[1].first),
              mixture = fmaf(null_weight, expf(-own_top) - own_mass, own_mass), // q' / exp(top)
      bracket = scoring.joint ? (1 - null_weight) * (own_moment - own_mass * logf(mixture))
                              : fmaf(own_mass, own_top, own_moment);
  // 0: absent, or no valid text, or none that is near
  scoring.scores[rows.begin + row + lane] =
      log_prior > -MI_PRUNER_INFINITY && own_mass > 0 ? expf(log_prior + own_top) * bracket : 0.0f;
}

} // namespace mi_pruner::cuda

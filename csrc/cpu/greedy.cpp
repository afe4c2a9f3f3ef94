#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "cpu/parallel.h"
#include "cpu/sample.h"

namespace mi_pruner::cpu {
namespace {

// By value, largest first, then by index: the order of picks.
template <typename Acc> auto before(const Acc* values) {
  return [values](int64_t a, int64_t b) { return values[a] > values[b] || (values[a] == values[b] && a < b); };
}

// Rows R[., s] of the redundancy, computed for a block of candidates at a time.
//
// Only the rows of picked tokens are ever needed, and which will be picked is nearly known: when a pick has no row yet,
// its row and those of the next best candidates are computed as one product. A row does not depend on the block it is
// computed in, so this changes no bit, whatever the block.
template <typename Acc> class RedundancyRows {
public:
  // For `keep` picks. At most 2 keep rows (or one block) are held; the worst candidates' make room for better ones.
  RedundancyRows(const Tokens<Acc>& visual, const SelectOptions& options, int64_t keep)
      : visual_(visual), kappa_(static_cast<Acc>(1 / (options.bandwidth * options.bandwidth))),
        chain_(options.redundancy == Redundancy::kChain), capacity_(std::max(2 * keep, block())),
        length_(padded(visual.rows.count)), row_of_(visual.rows.count, nullptr) {}

  // The row of `pick`, chain: times pi_pick. `gains` (NaN: not to be picked) rank the candidates for its block;
  // `wanted` picks, this one included, still need a row.
  const Acc* row(int64_t pick, const Acc* gains, int64_t wanted) {
    if (row_of_[pick] == nullptr) compute(pick, gains, wanted);
    return row_of_[pick];
  }

  // `pick` has been dealt with: its row's memory is free for another.
  void release(int64_t pick) { free_.push_back(std::exchange(row_of_[pick], nullptr)); }

private:
  // Rows in one product. The features are read once a block, so more rows are faster the farther the features come
  // from; but the farther ahead, the more of the guesses are wrong. At N = 2880, K = 320 (clustered features, the
  // defaults) 20 computes 1.03 K rows, 48 1.3 K; at N = 10000, K = 1000 both 1.01 K, and 48 is 1.2 times as fast.
  int64_t block() const { return visual_.rows.count * visual_.rows.dim > (int64_t{1} << 24) ? 48 : 20; }

  // Towards the end fewer are wanted; below this a block costs hardly less, since the features are read all the same.
  static constexpr int64_t kFewest = 8;

  void compute(int64_t pick, const Acc* gains, int64_t wanted) {
    const int64_t count = wanted == 1 ? 1 : std::min(block(), std::max(wanted, kFewest));
    const std::vector<int64_t> chosen = candidates(pick, gains, count);
    reserve(static_cast<int64_t>(chosen.size()), gains);
    std::vector<Acc*> rows(chosen.size());
    for (size_t j = 0; j < chosen.size(); ++j) {
      rows[j] = row_of_[chosen[j]] = free_.back();
      free_.pop_back();
    }
    fill(chosen, rows);
  }

  // Memory for `count` rows: what is free, what may still be allocated, the rows of the worst candidates.
  void reserve(int64_t count, const Acc* gains) {
    const int64_t fresh = std::min(count - static_cast<int64_t>(free_.size()), capacity_ - held_);
    if (fresh > 0) {
      Acc* memory = memory_.emplace_back(fresh * length_).get();
      for (int64_t j = 0; j < fresh; ++j)
        free_.push_back(memory + j * length_);
      held_ += fresh;
    }
    const int64_t missing = count - static_cast<int64_t>(free_.size());
    if (missing <= 0) return;
    std::vector<int64_t> cached;
    for (int64_t i = 0; i < visual_.rows.count; ++i)
      if (row_of_[i] != nullptr) cached.push_back(i);
    std::nth_element(cached.begin(), cached.begin() + (missing - 1), cached.end(),
                     [gains](int64_t a, int64_t b) { return gains[a] < gains[b]; });
    for (int64_t j = 0; j < missing; ++j)
      release(cached[j]);
  }

  // `pick` and the tokens of the next largest gains that have no row yet, `count` in all where there are as many.
  std::vector<int64_t> candidates(int64_t pick, const Acc* gains, int64_t count) const {
    std::vector<int64_t> chosen;
    for (int64_t i = 0; i < visual_.rows.count; ++i)
      if (i != pick && row_of_[i] == nullptr && !std::isnan(gains[i])) chosen.push_back(i);
    if (static_cast<int64_t>(chosen.size()) > count - 1) {
      std::nth_element(chosen.begin(), chosen.begin() + (count - 1), chosen.end(), before(gains));
      chosen.resize(count - 1);
    }
    chosen.push_back(pick);
    return chosen;
  }

  void fill(const std::vector<int64_t>& chosen, const std::vector<Acc*>& rows) {
    const auto& k = kernels<Acc>();
    const int64_t count = static_cast<int64_t>(chosen.size()), n = visual_.rows.count;
    Buffer<Acc> panel(panel_size(count, visual_.rows.dim));
    k.pack(visual_.rows, chosen.data(), count, visual_.inverse_norm.get(), panel.get());
    parallel_for(n, kRowGrain, [&](int64_t begin, int64_t end) {
      k.products(visual_.rows, begin, end, panel.get(), count, rows.data(), nullptr);
    });
    parallel_for(count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        k.scale(rows[j], visual_.inverse_norm.get(), length_);
        const Acc weight = chain_ ? std::exp(visual_.log_prior[chosen[j]]) : Acc(1);
        k.redundancies(rows[j], visual_.log_prior.get(), length_, kappa_, weight);
      }
    });
  }

  const Tokens<Acc>& visual_;
  const Acc kappa_;
  const bool chain_;
  const int64_t capacity_, length_;
  int64_t held_ = 0;
  std::vector<Acc*> row_of_, free_;
  std::vector<Buffer<Acc>> memory_;
};

// max(1, floor(ratio * tokens + 0.5)): halves are rounded up by both, and this leaves no sum that a compiler could fuse
// with the product. (They differ at 0.5 - 2^-54 alone, where 1 is the least.)
int64_t share_of(double ratio, int64_t tokens) {
  return std::max<int64_t>(1, std::llround(ratio * static_cast<double>(tokens)));
}

// Scores as the greedy step wants them: NaN for tokens that can't be picked, -infinity for valid ones scored NaN.
template <typename Acc> Buffer<Acc> pickable_scores(const Tokens<Acc>& visual, const Acc* scores) {
  Buffer<Acc> pickable(padded(visual.rows.count));
  std::fill_n(pickable.get(), padded(visual.rows.count), std::numeric_limits<Acc>::quiet_NaN());
  for (int64_t i : visual.valid)
    pickable[i] = std::isnan(scores[i]) ? -std::numeric_limits<Acc>::infinity() : scores[i];
  return pickable;
}

template <typename Acc>
int64_t top_k(const Tokens<Acc>& visual, const Acc* scores, int64_t keep, const SelectOptions& options,
              int64_t* indices, Acc* gains) {
  const Buffer<Acc> score = pickable_scores(visual, scores);
  std::vector<int64_t> order = visual.valid;
  std::partial_sort(order.begin(), order.begin() + keep, order.end(), before(score.get()));
  for (int64_t k = 0; k < keep; ++k) {
    if (options.min_gain && !(score[order[k]] >= static_cast<Acc>(*options.min_gain))) return k;
    indices[k] = order[k];
    gains[k] = score[order[k]];
  }
  return keep;
}

} // namespace

template <typename Acc>
int64_t greedy_select(const Tokens<Acc>& visual, const Acc* scores, int64_t keep, const SelectOptions& options,
                      int64_t* indices, Acc* gains) {
  const int64_t valid = static_cast<int64_t>(visual.valid.size());
  keep = std::min(keep, valid);
  if (options.ratio) keep = std::min(keep, share_of(*options.ratio, valid));
  if (keep <= 0) return 0;
  if (options.redundancy == Redundancy::kNone || options.weight == 0)
    return top_k(visual, scores, keep, options, indices, gains);
  const bool mean = options.redundancy == Redundancy::kMean, maximum = options.redundancy == Redundancy::kMax;
  const int64_t n = visual.rows.count, length = padded(n);
  Buffer<Acc> score = pickable_scores(visual, scores), rho(length), gain(length);
  std::fill_n(rho.get(), length, Acc(0));
  RedundancyRows<Acc> rows(visual, options, keep);
  const Acc* row = nullptr;
  for (int64_t k = 0; k < keep; ++k) {
    const Acc scale = static_cast<Acc>(mean && k > 0 ? options.weight / static_cast<double>(k) : options.weight);
    const bool join_maximum = maximum && k > 1; // the first row is the maximum so far, also where it is negative
    Best<Acc> best = kernels<Acc>().step(score.get(), rho.get(), row, join_maximum, scale, length, gain.get());
    if (best.index < 0) { // no gain above -infinity: the lowest index that is left
      best.index = std::find_if(gain.get(), gain.get() + n, [](Acc g) { return !std::isnan(g); }) - gain.get();
      if (best.index == n) return k; // gains that overflowed: options beyond what _checks.py lets through
    }
    if (options.min_gain && !(best.gain >= static_cast<Acc>(*options.min_gain))) return k;
    if (k > 0) rows.release(indices[k - 1]);
    indices[k] = best.index;
    gains[k] = best.gain;
    score[best.index] = std::numeric_limits<Acc>::quiet_NaN();
    if (k + 1 < keep) row = rows.row(best.index, gain.get(), keep - 1 - k);
  }
  return keep;
}

template int64_t greedy_select(const Tokens<float>&, const float*, int64_t, const SelectOptions&, int64_t*, float*);
template int64_t greedy_select(const Tokens<double>&, const double*, int64_t, const SelectOptions&, int64_t*, double*);

} // namespace mi_pruner::cpu

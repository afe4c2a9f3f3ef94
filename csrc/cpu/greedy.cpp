#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "cpu/parallel.h"
#include "cpu/sample.h"
#include "cpu/sketch.h"

namespace mi_pruner::cpu {
namespace {

// By value, largest first, then by index: the order of picks.
template <typename Acc> auto before(const Acc* values) {
  return [values](int64_t a, int64_t b) { return values[a] > values[b] || (values[a] == values[b] && a < b); };
}

// Scores as the greedy step wants them: NaN for tokens that can't be picked, -infinity for valid ones scored NaN.
template <typename Acc> Buffer<Acc> pickable_scores(const Tokens<Acc>& visual, const Acc* scores) {
  Buffer<Acc> pickable(padded(visual.rows.count));
  std::fill_n(pickable.get(), padded(visual.rows.count), std::numeric_limits<Acc>::quiet_NaN());
  for (int64_t i : visual.valid)
    pickable[i] = std::isnan(scores[i]) ? -std::numeric_limits<Acc>::infinity() : scores[i];
  return pickable;
}

// Where the greedy loop stands.
template <typename Acc> class Progress {
public:
  Progress(const Tokens<Acc>& visual, const Acc* scores, const SelectOptions& options)
      : options_(options), count_(visual.rows.count), length_(padded(count_)), score_(pickable_scores(visual, scores)),
        rho_(length_), gain_(length_) {
    std::fill_n(rho_.get(), length_, Acc(0));
  }

  Progress(const Progress& other)
      : options_(other.options_), count_(other.count_), length_(other.length_), picks_(other.picks_), score_(length_),
        rho_(length_), gain_(length_) {
    std::copy_n(other.score_.get(), length_, score_.get());
    std::copy_n(other.rho_.get(), length_, rho_.get());
  }

  // The next pick, if any, once `row` of the one before is taken into account; null for the first.
  std::optional<Best<Acc>> next(const Acc* row) {
    const bool mean = options_.redundancy == Redundancy::kMean, maximum = options_.redundancy == Redundancy::kMax;
    const double divisor = mean && picks_ > 0 ? static_cast<double>(picks_) : 1;
    const bool join_maximum = maximum && picks_ > 1; // the first row is the maximum so far, also where it is negative
    Best<Acc> best = kernels<Acc>().step(score_.get(), rho_.get(), row, join_maximum,
                                         static_cast<Acc>(options_.weight / divisor), length_, gain_.get());
    if (best.index < 0) { // no gain above -infinity: the lowest index that is left
      best.index = std::find_if(gain_.get(), gain_.get() + count_, [](Acc g) { return !std::isnan(g); }) - gain_.get();
      if (best.index == count_) return std::nullopt; // they overflowed: options beyond what _checks.py lets through
    }
    if (options_.min_gain && !(best.gain >= static_cast<Acc>(*options_.min_gain))) return std::nullopt;
    score_[best.index] = std::numeric_limits<Acc>::quiet_NaN();
    ++picks_;
    return best;
  }

  // Of the last step; NaN: not to be picked.
  const Acc* gains() const { return gain_.get(); }

private:
  const SelectOptions& options_;
  const int64_t count_, length_;
  int64_t picks_ = 0;
  Buffer<Acc> score_, rho_, gain_;
};

// Rows R[., s] of the redundancy, computed for a block of tokens at a time.
//
// Only the rows of picked tokens are ever needed. When a pick has no row yet, the loop is run ahead on a sketch of the
// features, and the rows of the tokens that it would pick next are computed with it, as one product. A row does not
// depend on the block it is computed in, so this changes no bit, whatever the sketch.
template <typename Acc> class RedundancyRows {
public:
  // For `keep` picks. At most 2 keep rows, or kRowBytes of them, are held; the worst candidates' make room for better
  // ones, and are computed again if they are picked after all.
  RedundancyRows(const Tokens<Acc>& visual, const SelectOptions& options, int64_t keep)
      : visual_(visual), kappa_(static_cast<Acc>(1 / (options.bandwidth * options.bandwidth))),
        chain_(options.redundancy == Redundancy::kChain), length_(padded(visual.rows.count)),
        capacity_(std::max({2 * keep, kBlock, kRowBytes / (length_ * int64_t{sizeof(Acc)})})),
        row_of_(visual.rows.count, nullptr) {}

  // The row of `pick`, chain: times pi_pick, where the loop stands at `progress`; `wanted` picks, this one included,
  // still need a row.
  const Acc* row(int64_t pick, const Progress<Acc>& progress, int64_t wanted) {
    if (row_of_[pick] == nullptr) compute(draft(pick, progress, wanted), progress.gains());
    return row_of_[pick];
  }

  // `pick` has been dealt with: its row's memory is free for another.
  void release(int64_t pick) { free_.push_back(std::exchange(row_of_[pick], nullptr)); }

private:
  // Rows in one product, at most: as many as `products` works on at a time. With more, the features are read no less
  // often, and more of the guesses are wrong.
  static constexpr int64_t kBlock = 64;

  // Picks that a draft looks ahead: where the rows of most are there, it would find few that lack theirs.
  static constexpr int64_t kAhead = 4 * kBlock;

  // All rows of 4,096 tokens: features of few dimensions, where each pick reorders the others, need most of them.
  static constexpr int64_t kRowBytes = 64 << 20;

  // `pick` and those of the next picks, as far as a sketch of the features tells, that have no row.
  std::vector<int64_t> draft(int64_t pick, const Progress<Acc>& progress, int64_t wanted) {
    std::vector<int64_t> chosen{pick};
    if (wanted == 1) return chosen;
    if (!sketch_) sketch_.emplace(visual_);
    Progress<Acc> ahead(progress);
    Buffer<Acc> drafted(length_);
    int64_t left = std::min(wanted - 1, kAhead);
    for (int64_t last = pick; left > 0 && static_cast<int64_t>(chosen.size()) < kBlock; --left) {
      const Acc* row = row_of_[last];
      if (row == nullptr) {
        sketch_->cosines(last, drafted.get());
        redundancies(last, drafted.get());
        row = drafted.get();
      }
      const std::optional<Best<Acc>> next = ahead.next(row);
      if (!next) break;
      last = next->index;
      if (row_of_[last] == nullptr) chosen.push_back(last);
    }
    return chosen;
  }

  void compute(const std::vector<int64_t>& chosen, const Acc* gains) {
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

  void fill(const std::vector<int64_t>& chosen, const std::vector<Acc*>& rows) {
    const auto& k = kernels<Acc>();
    const int64_t count = static_cast<int64_t>(chosen.size()), n = visual_.rows.count;
    Buffer<Acc> panel(panel_size(count, visual_.rows.dim));
    k.pack(visual_.rows, chosen.data(), count, visual_.inverse_norm.get(), panel.get());
    parallel_for(n, product_row(visual_.rows.dim, count), [&](int64_t begin, int64_t end) {
      k.products(visual_.rows, begin, end, panel.get(), count, rows.data(), nullptr);
    });
    parallel_for(count, 2 * kExponential * length_, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        k.scale(rows[j], visual_.inverse_norm.get(), length_);
        redundancies(chosen[j], rows[j]);
      }
    });
  }

  // Of token s, in place of its cosines.
  void redundancies(int64_t s, Acc* row) const {
    const Acc weight = chain_ ? std::exp(visual_.log_prior[s]) : Acc(1);
    kernels<Acc>().redundancies(row, visual_.log_prior.get(), length_, kappa_, weight);
  }

  const Tokens<Acc>& visual_;
  const Acc kappa_;
  const bool chain_;
  const int64_t length_, capacity_;
  int64_t held_ = 0;
  std::vector<Acc*> row_of_, free_;
  std::vector<Buffer<Acc>> memory_;
  std::optional<Sketch<Acc>> sketch_;
};

// max(1, floor(ratio * tokens + 0.5)): halves are rounded up by both, and this leaves no sum that a compiler could fuse
// with the product. (They differ at 0.5 - 2^-54 alone, where 1 is the least.)
int64_t share_of(double ratio, int64_t tokens) {
  return std::max<int64_t>(1, std::llround(ratio * static_cast<double>(tokens)));
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
  Progress<Acc> progress(visual, scores, options);
  RedundancyRows<Acc> rows(visual, options, keep);
  const Acc* row = nullptr;
  for (int64_t k = 0; k < keep; ++k) {
    const std::optional<Best<Acc>> pick = progress.next(row);
    if (!pick) return k;
    if (k > 0) rows.release(indices[k - 1]);
    indices[k] = pick->index;
    gains[k] = pick->gain;
    if (k + 1 < keep) row = rows.row(pick->index, progress, keep - 1 - k);
  }
  return keep;
}

template int64_t greedy_select(const Tokens<float>&, const float*, int64_t, const SelectOptions&, int64_t*, float*);
template int64_t greedy_select(const Tokens<double>&, const double*, int64_t, const SelectOptions&, int64_t*, double*);

} // namespace mi_pruner::cpu

// Scores and selection of one sample. Free of Torch. Acc: float, or double for float64 features.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/kernels.h"

namespace mi_pruner::cpu {

// A sample's visual or text tokens: which are valid, their norms and their prior.
template <typename Acc> struct Tokens {
  Rows rows;
  Buffer<Acc> inverse_norm;   // padded; 0 for zero rows, absent tokens and padding
  Buffer<Acc> log_prior;      // padded; -infinity for absent tokens
  std::vector<int64_t> valid; // indices, ascending
};

// `prior` (rows.count), or null for a uniform one.
template <typename Acc> Tokens<Acc> prepare(const Rows& rows, const Acc* prior);

struct ScoreOptions {
  std::optional<double> bandwidth;
  bool joint;
};

// scores (visual.count): see docs/maths.md, "Scores". Returns the visual tokens as `prepare` would: their norms come
// with the product, so that `visual` is read once.
template <typename Acc>
Tokens<Acc> mi_scores(const Rows& visual, const Acc* visual_prior, const Tokens<Acc>& text, const ScoreOptions& options,
                      Acc* scores);

// p log p for p = 0/dim, 1/dim, ..., dim/dim.
template <typename Acc> std::vector<Acc> information_terms(int64_t dim);

// scores (visual.count): see docs/maths.md, "The histogram estimator". `terms`: those of information_terms(visual.dim).
template <typename Acc>
void histogram_mi_scores(const Rows& visual, const Acc* visual_prior, const Tokens<Acc>& text, int bins,
                         const std::vector<Acc>& terms, Acc* scores);

enum class Redundancy { kMean, kChain, kMax, kNone };

struct SelectOptions {
  double bandwidth;
  Redundancy redundancy;
  double weight;
  std::optional<double> min_gain;
  std::optional<double> ratio; // of the valid tokens, picked at the most
};

// At most `keep` picks in order of selection, into indices and gains; returns how many. See docs/maths.md, "Selection".
template <typename Acc>
int64_t greedy_select(const Tokens<Acc>& visual, const Acc* scores, int64_t keep, const SelectOptions& options,
                      int64_t* indices, Acc* gains);

} // namespace mi_pruner::cpu

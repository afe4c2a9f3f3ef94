#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/parallel.h"
#include "cpu/sample.h"

namespace mi_pruner::cpu {
namespace {

// log pi of the valid tokens. Priors are taken relative to the largest: their sum can't overflow, and one that
// underflows counts as the smallest normal number.
template <typename Acc> void normalise_prior(const Acc* prior, Tokens<Acc>& tokens) {
  using Limits = std::numeric_limits<Acc>;
  Acc top = 0, total = 0;
  for (int64_t i : tokens.valid)
    top = std::max(top, std::min(prior[i], Limits::max()));
  for (int64_t i : tokens.valid) {
    tokens.log_prior[i] = std::max(std::min(prior[i], Limits::max()) / top, Limits::min());
    total += tokens.log_prior[i];
  }
  for (int64_t i : tokens.valid)
    tokens.log_prior[i] = std::log(tokens.log_prior[i]) - std::log(total);
}

template <typename Acc> Tokens<Acc> unprepared(const Rows& rows) {
  return {rows, Buffer<Acc>(padded(rows.count)), Buffer<Acc>(padded(rows.count)), {}};
}

// What follows from the squared norms, so far in tokens.inverse_norm, and from the prior.
template <typename Acc> void finish(const Acc* prior, Tokens<Acc>& tokens) {
  const int64_t count = tokens.rows.count, length = padded(count);
  for (int64_t i = 0; i < count; ++i) {
    const Acc square = tokens.inverse_norm[i];
    const bool valid = std::isfinite(square) && (prior == nullptr || prior[i] > 0);
    tokens.inverse_norm[i] = valid && square >= std::numeric_limits<Acc>::min() ? 1 / std::sqrt(square) : Acc(0);
    if (valid) tokens.valid.push_back(i);
  }
  std::fill(tokens.inverse_norm.get() + count, tokens.inverse_norm.get() + length, Acc(0));
  std::fill_n(tokens.log_prior.get(), length, -std::numeric_limits<Acc>::infinity());
  if (prior != nullptr) {
    normalise_prior(prior, tokens);
  } else {
    for (int64_t i : tokens.valid)
      tokens.log_prior[i] = -std::log(static_cast<Acc>(tokens.valid.size()));
  }
}

// cosines[j][i] of text.valid[j] with every visual token, and their sum over i; returns these, prepared from the norms
// of the same pass.
template <typename Acc>
Tokens<Acc> all_cosines(const Rows& visual, const Acc* prior, const Tokens<Acc>& text, const std::vector<Acc*>& cosines,
                        std::vector<double>& sums) {
  const auto& k = kernels<Acc>();
  const int64_t count = static_cast<int64_t>(cosines.size()), length = padded(visual.count);
  Tokens<Acc> tokens = unprepared<Acc>(visual);
  Buffer<Acc> panel(panel_size(count, text.rows.dim));
  k.pack(text.rows, text.valid.data(), count, text.inverse_norm.get(), panel.get());
  parallel_for(visual.count, product_row(visual.dim, count), [&](int64_t begin, int64_t end) {
    k.products(visual, begin, end, panel.get(), count, cosines.data(), tokens.inverse_norm.get());
  });
  finish(prior, tokens);
  parallel_for(count, kExponential * length, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      k.scale(cosines[j], tokens.inverse_norm.get(), length);
      sums[j] = k.sum(cosines[j], length);
    }
  });
  return tokens;
}

// The bandwidth rule: h^2 = population standard deviation of the cosines over the valid pairs, at least 1e-4.
template <typename Acc>
double squared_bandwidth(const Tokens<Acc>& visual, const std::vector<Acc*>& cosines, const std::vector<double>& sums) {
  const int64_t count = static_cast<int64_t>(cosines.size()), length = padded(visual.rows.count);
  const double pairs = static_cast<double>(visual.valid.size()) * static_cast<double>(count);
  const Acc mean = static_cast<Acc>(std::accumulate(sums.begin(), sums.end(), 0.0) / pairs);
  std::vector<double> squares(count);
  parallel_for(count, kExponential * length, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j)
      squares[j] = kernels<Acc>().squared_deviations(cosines[j], visual.log_prior.get(), length, mean);
  });
  return std::max(std::sqrt(std::accumulate(squares.begin(), squares.end(), 0.0) / pairs), 1e-4);
}

} // namespace

template <typename Acc> Tokens<Acc> prepare(const Rows& rows, const Acc* prior) {
  Tokens<Acc> tokens = unprepared<Acc>(rows);
  parallel_for(rows.count, product_row(rows.dim, 0), [&](int64_t begin, int64_t end) {
    kernels<Acc>().squared_norms(rows, begin, end, tokens.inverse_norm.get());
  });
  finish(prior, tokens);
  return tokens;
}

template <typename Acc>
Tokens<Acc> mi_scores(const Rows& visual, const Acc* visual_prior, const Tokens<Acc>& text, const ScoreOptions& options,
                      Acc* scores) {
  std::fill_n(scores, visual.count, Acc(0));
  if (text.valid.empty()) return prepare(visual, visual_prior);
  const auto& k = kernels<Acc>();
  const int64_t length = padded(visual.count), count = static_cast<int64_t>(text.valid.size());
  Buffer<Acc> storage(count * length), padded_scores(length);
  std::vector<Acc*> cosines(count);
  std::vector<Acc> log_z(count), weight(count);
  for (int64_t j = 0; j < count; ++j) {
    cosines[j] = storage.get() + j * length;
    weight[j] = std::exp(text.log_prior[text.valid[j]]);
  }
  std::vector<double> sums(count);
  Tokens<Acc> tokens = all_cosines(visual, visual_prior, text, cosines, sums);
  if (tokens.valid.empty()) return tokens;
  const double h2 =
      options.bandwidth ? *options.bandwidth * *options.bandwidth : squared_bandwidth(tokens, cosines, sums);
  const Acc kappa = static_cast<Acc>(1 / h2);
  parallel_for(count, kExponential * length, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j)
      log_z[j] = k.log_normaliser(cosines[j], tokens.log_prior.get(), length, kappa);
  });
  parallel_for(length / kPad, kExponential * kPad * count, [&](int64_t begin, int64_t end) {
    k.scores(cosines.data(), log_z.data(), weight.data(), count, tokens.log_prior.get(), kappa, options.joint,
             begin * kPad, end * kPad, padded_scores.get());
  });
  for (int64_t i : tokens.valid)
    scores[i] = padded_scores[i];
  return tokens;
}

template Tokens<float> prepare(const Rows&, const float*);
template Tokens<double> prepare(const Rows&, const double*);
template Tokens<float> mi_scores(const Rows&, const float*, const Tokens<float>&, const ScoreOptions&, float*);
template Tokens<double> mi_scores(const Rows&, const double*, const Tokens<double>&, const ScoreOptions&, double*);

} // namespace mi_pruner::cpu

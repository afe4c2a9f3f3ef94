// The CPU operators: tensors to samples, samples to kernels. Schemas: mi_pruner/_schema.py.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cpu/tensors.h"
#include "front/box.h"
#include "front/operators.h"
#include "new_tensor.h"

namespace mi_pruner::cpu {

// Torch's own would replace an exception by one without its message.
void parallel_for(int64_t count, double ns, const std::function<void(int64_t, int64_t)>& body) {
  const auto parts = std::max<int64_t>(1, std::llround(std::floor(static_cast<double>(count) * ns / kShare)));
  const int64_t grain = (count + parts - 1) / parts; // Torch makes count / grain parts, rounded up
  std::exception_ptr failure;
  std::once_flag failed;
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    try {
      body(begin, end);
    } catch (...) {
      std::call_once(failed, [&] { failure = std::current_exception(); });
    }
  });
  if (failure) std::rethrow_exception(failure);
}

namespace {

using Picks = std::tuple<Tensor, Tensor>;
using TokensAndPicks = std::tuple<Tensor, Tensor, Tensor>;

template <typename Acc> Tokens<Acc> prepare(const Sample& sample, const Acc* prior) {
  return cpu::prepare<Acc>(sample.rows, of_sample(prior, sample));
}

// The work.

struct Scoring {
  std::vector<Sample> text;
  OptionalTensor text_prior;
  int64_t text_tokens;
  ScoreOptions options;
};

struct Selecting {
  std::vector<Span> slots;     // of the outputs, a sample each
  std::vector<int64_t> budget; // at most that many picks
  SelectOptions options;
};

struct Outputs {
  Tensor indices, gains;
};

template <typename Acc>
void score(const std::vector<Sample>& visual, const OptionalTensor& visual_prior, const Scoring& scoring,
           const Tensor& scores) {
  const Acc* prior = array<Acc>("visual_prior", visual_prior, scores.numel());
  const Acc* text_prior = array<Acc>("text_prior", scoring.text_prior, scoring.text_tokens);
  Acc* out = scores.mutable_data_ptr<Acc>();
  std::fill_n(out, scores.numel(), Acc(0));
  for_each_sample(visual.size(), [&](size_t b) {
    const Tokens<Acc> text = prepare(scoring.text[b], text_prior);
    mi_scores(visual[b].rows, of_sample(prior, visual[b]), text, scoring.options, out + visual[b].span.begin);
  });
}

template <typename Acc>
void score_by_histograms(const std::vector<Sample>& visual, const OptionalTensor& visual_prior,
                         const std::vector<Sample>& text, const OptionalTensor& text_prior, int64_t text_tokens,
                         int bins, const Tensor& scores) {
  const Acc* prior = array<Acc>("visual_prior", visual_prior, scores.numel());
  const Acc* words_prior = array<Acc>("text_prior", text_prior, text_tokens);
  Acc* out = scores.mutable_data_ptr<Acc>();
  const std::vector<Acc> terms = information_terms<Acc>(visual.empty() ? 0 : visual[0].rows.dim);
  for_each_sample(visual.size(), [&](size_t b) {
    histogram_mi_scores(visual[b].rows, of_sample(prior, visual[b]), prepare(text[b], words_prior), bins, terms,
                        out + visual[b].span.begin);
  });
}

template <typename Acc> void clear(const Outputs& out) {
  std::fill_n(out.indices.mutable_data_ptr<int64_t>(), out.indices.numel(), int64_t{-1});
  std::fill_n(out.gains.mutable_data_ptr<Acc>(), out.gains.numel(), -std::numeric_limits<Acc>::infinity());
}

template <typename Acc>
int64_t select_one(const Tokens<Acc>& tokens, const Acc* scores, const Selecting& selecting, size_t b,
                   const Outputs& out) {
  const Span slot = selecting.slots[b];
  return greedy_select(tokens, scores, std::min(slot.count, selecting.budget[b]), selecting.options,
                       out.indices.mutable_data_ptr<int64_t>() + slot.begin,
                       out.gains.mutable_data_ptr<Acc>() + slot.begin);
}

template <typename Acc>
void select(const Tensor& scores, const std::vector<Sample>& visual, const OptionalTensor& visual_prior,
            const Selecting& selecting, const Outputs& out) {
  const Acc* prior = array<Acc>("visual_prior", visual_prior, scores.numel());
  const Acc* score = array<Acc>("scores", scores, scores.numel());
  clear<Acc>(out);
  for_each_sample(visual.size(), [&](size_t b) {
    select_one(prepare(visual[b], prior), score + visual[b].span.begin, selecting, b, out);
  });
}

// Sorts a sample's `count` picks by index and copies their rows to `tokens`.
template <typename Acc>
void gather(const Rows& rows, Span slot, int64_t count, const Outputs& out, const Tensor& tokens) {
  int64_t* indices = out.indices.mutable_data_ptr<int64_t>() + slot.begin;
  Acc* gains = out.gains.mutable_data_ptr<Acc>() + slot.begin;
  std::vector<std::pair<int64_t, Acc>> picks(count);
  for (int64_t k = 0; k < count; ++k)
    picks[k] = {indices[k], gains[k]};
  std::sort(picks.begin(), picks.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  const int64_t row_bytes = rows.dim * bytes(rows.dtype);
  char* to = static_cast<char*>(tokens.mutable_data_ptr()) + slot.begin * row_bytes;
  for (int64_t k = 0; k < count; ++k, to += row_bytes) {
    indices[k] = picks[k].first;
    gains[k] = picks[k].second;
    if (row_bytes > 0)
      std::memcpy(to, static_cast<const char*>(rows.data) + indices[k] * rows.stride * bytes(rows.dtype), row_bytes);
  }
  if (row_bytes > 0) std::memset(to, 0, (slot.count - count) * row_bytes);
}

template <typename Acc>
void prune(const std::vector<Sample>& visual, int64_t visual_tokens, const OptionalTensor& visual_prior,
           const Scoring& scoring, const Selecting& selecting, const Outputs& out, const Tensor& tokens) {
  const Acc* prior = array<Acc>("visual_prior", visual_prior, visual_tokens);
  const Acc* text_prior = array<Acc>("text_prior", scoring.text_prior, scoring.text_tokens);
  clear<Acc>(out);
  for_each_sample(visual.size(), [&](size_t b) {
    const Tokens<Acc> text = prepare(scoring.text[b], text_prior);
    std::vector<Acc> scores(visual[b].rows.count);
    const Tokens<Acc> prepared =
        mi_scores(visual[b].rows, of_sample(prior, visual[b]), text, scoring.options, scores.data());
    const int64_t count = select_one(prepared, scores.data(), selecting, b, out);
    gather<Acc>(visual[b].rows, selecting.slots[b], count, out, tokens);
  });
}

// The operators.

Redundancy redundancy_of(const std::string& name) {
  if (name == "mean") return Redundancy::kMean;
  if (name == "chain") return Redundancy::kChain;
  if (name == "max") return Redundancy::kMax;
  STD_TORCH_CHECK(name == "none", "redundancy: unknown mode ", name);
  return Redundancy::kNone;
}

std::vector<int64_t> budgets(const std::optional<Tensor>& budget, size_t samples) {
  if (!budget) return std::vector<int64_t>(samples, std::numeric_limits<int64_t>::max());
  check_array("budget", *budget, static_cast<int64_t>(samples), ScalarType::Long);
  const int64_t* values = budget->const_data_ptr<int64_t>();
  return {values, values + samples};
}

Outputs new_outputs(const Tensor& visual, std::initializer_list<int64_t> shape) {
  return {new_tensor(visual, shape, ScalarType::Long), new_tensor(visual, shape, accumulation(visual))};
}

// f<Acc>() for the accumulation type of `visual`.
#define MI_PRUNER_BY_ACCUMULATION(visual, f, ...)                                                                      \
  (accumulation(visual) == ScalarType::Double ? f<double>(__VA_ARGS__) : f<float>(__VA_ARGS__))

void check_dense(const Tensor& visual, const Tensor& text) {
  check_features("visual", visual, 3, visual.scalar_type());
  check_features("text", text, 3, visual.scalar_type());
  STD_TORCH_CHECK(text.size(0) == visual.size(0) && text.size(2) == visual.size(2), "text: wrong shape");
}

Scoring dense_scoring(const Tensor& visual, const Tensor& text, const OptionalTensor& text_prior,
                      std::optional<double> bandwidth, const std::string& marginal) {
  check_dense(visual, text);
  return {dense_samples(text), text_prior, text.size(0) * text.size(1), {bandwidth, marginal == "joint"}};
}

Scoring packed_scoring(const Tensor& visual, const Tensor& text, const Tensor& cu_visual, const Tensor& cu_text,
                       int64_t max_text, const OptionalTensor& text_prior, std::optional<double> bandwidth,
                       const std::string& marginal) {
  check_features("visual", visual, 2, visual.scalar_type());
  check_features("text", text, 2, visual.scalar_type());
  STD_TORCH_CHECK(text.size(1) == visual.size(1) && cu_text.numel() == cu_visual.numel(), "text: wrong shape");
  return {packed_samples("cu_seqlens_text", text, cu_text, max_text),
          text_prior,
          text.size(0),
          {bandwidth, marginal == "joint"}};
}

Selecting packed_selecting(const Tensor& cu_visual, const Tensor& cu_keep, int64_t max_keep, int64_t total_keep,
                           const SelectOptions& options) {
  STD_TORCH_CHECK(cu_keep.numel() == cu_visual.numel(), "cu_keep: wrong shape");
  const std::vector<Span> slots = packed_spans("cu_keep", cu_keep, total_keep, max_keep);
  return {slots, budgets(std::nullopt, slots.size()), options};
}

Tensor mi_scores_op(Tensor visual, Tensor text, OptionalTensor visual_prior, OptionalTensor text_prior,
                    std::optional<double> bandwidth, std::string marginal) {
  const Scoring scoring = dense_scoring(visual, text, text_prior, bandwidth, marginal);
  const Tensor scores = new_tensor(visual, {visual.size(0), visual.size(1)}, accumulation(visual));
  MI_PRUNER_BY_ACCUMULATION(visual, score, dense_samples(visual), visual_prior, scoring, scores);
  return scores;
}

Picks greedy_select_op(Tensor scores, Tensor visual, int64_t keep, OptionalTensor visual_prior, double visual_bandwidth,
                       std::string redundancy, double redundancy_weight, OptionalTensor budget,
                       std::optional<double> min_gain, std::optional<double> ratio) {
  check_features("visual", visual, 3, visual.scalar_type());
  check_array("scores", scores, visual.size(0) * visual.size(1), accumulation(visual));
  const Selecting selecting{dense_spans(visual.size(0), keep),
                            budgets(budget, visual.size(0)),
                            {visual_bandwidth, redundancy_of(redundancy), redundancy_weight, min_gain, ratio}};
  const Outputs out = new_outputs(visual, {visual.size(0), keep});
  MI_PRUNER_BY_ACCUMULATION(visual, select, scores, dense_samples(visual), visual_prior, selecting, out);
  return {out.indices, out.gains};
}

TokensAndPicks prune_op(Tensor visual, Tensor text, int64_t keep, OptionalTensor visual_prior,
                        OptionalTensor text_prior, std::optional<double> bandwidth, std::string marginal,
                        double visual_bandwidth, std::string redundancy, double redundancy_weight,
                        OptionalTensor budget, std::optional<double> min_gain, std::optional<double> ratio) {
  const Scoring scoring = dense_scoring(visual, text, text_prior, bandwidth, marginal);
  const Selecting selecting{dense_spans(visual.size(0), keep),
                            budgets(budget, visual.size(0)),
                            {visual_bandwidth, redundancy_of(redundancy), redundancy_weight, min_gain, ratio}};
  const Outputs out = new_outputs(visual, {visual.size(0), keep});
  const Tensor tokens = new_tensor(visual, {visual.size(0), keep, visual.size(2)}, visual.scalar_type());
  MI_PRUNER_BY_ACCUMULATION(visual, prune, dense_samples(visual), visual.size(0) * visual.size(1), visual_prior,
                            scoring, selecting, out, tokens);
  return {tokens, out.indices, out.gains};
}

Tensor mi_scores_varlen_op(Tensor visual, Tensor text, Tensor cu_seqlens_visual, Tensor cu_seqlens_text,
                           int64_t max_seqlen_visual, int64_t max_seqlen_text, OptionalTensor visual_prior,
                           OptionalTensor text_prior, std::optional<double> bandwidth, std::string marginal) {
  const Scoring scoring = packed_scoring(visual, text, cu_seqlens_visual, cu_seqlens_text, max_seqlen_text, text_prior,
                                         bandwidth, marginal);
  const Tensor scores = new_tensor(visual, {visual.size(0)}, accumulation(visual));
  const auto samples = packed_samples("cu_seqlens_visual", visual, cu_seqlens_visual, max_seqlen_visual);
  MI_PRUNER_BY_ACCUMULATION(visual, score, samples, visual_prior, scoring, scores);
  return scores;
}

Picks greedy_select_varlen_op(Tensor scores, Tensor visual, Tensor cu_seqlens_visual, Tensor cu_keep,
                              int64_t max_seqlen_visual, int64_t max_keep, int64_t total_keep,
                              OptionalTensor visual_prior, double visual_bandwidth, std::string redundancy,
                              double redundancy_weight, std::optional<double> min_gain, std::optional<double> ratio) {
  check_features("visual", visual, 2, visual.scalar_type());
  check_array("scores", scores, visual.size(0), accumulation(visual));
  const Selecting selecting =
      packed_selecting(cu_seqlens_visual, cu_keep, max_keep, total_keep,
                       {visual_bandwidth, redundancy_of(redundancy), redundancy_weight, min_gain, ratio});
  const Outputs out = new_outputs(visual, {total_keep});
  const auto samples = packed_samples("cu_seqlens_visual", visual, cu_seqlens_visual, max_seqlen_visual);
  MI_PRUNER_BY_ACCUMULATION(visual, select, scores, samples, visual_prior, selecting, out);
  return {out.indices, out.gains};
}

TokensAndPicks prune_varlen_op(Tensor visual, Tensor text, Tensor cu_seqlens_visual, Tensor cu_seqlens_text,
                               Tensor cu_keep, int64_t max_seqlen_visual, int64_t max_seqlen_text, int64_t max_keep,
                               int64_t total_keep, OptionalTensor visual_prior, OptionalTensor text_prior,
                               std::optional<double> bandwidth, std::string marginal, double visual_bandwidth,
                               std::string redundancy, double redundancy_weight, std::optional<double> min_gain,
                               std::optional<double> ratio) {
  const Scoring scoring = packed_scoring(visual, text, cu_seqlens_visual, cu_seqlens_text, max_seqlen_text, text_prior,
                                         bandwidth, marginal);
  const Selecting selecting =
      packed_selecting(cu_seqlens_visual, cu_keep, max_keep, total_keep,
                       {visual_bandwidth, redundancy_of(redundancy), redundancy_weight, min_gain, ratio});
  const Outputs out = new_outputs(visual, {total_keep});
  const Tensor tokens = new_tensor(visual, {total_keep, visual.size(1)}, visual.scalar_type());
  if (tokens.numel() > 0) // slots that no sample owns
    std::memset(tokens.mutable_data_ptr(), 0, tokens.numel() * bytes(dtype_of(visual)));
  const auto samples = packed_samples("cu_seqlens_visual", visual, cu_seqlens_visual, max_seqlen_visual);
  MI_PRUNER_BY_ACCUMULATION(visual, prune, samples, visual.size(0), visual_prior, scoring, selecting, out, tokens);
  return {tokens, out.indices, out.gains};
}

Tensor histogram_mi_scores_op(Tensor visual, Tensor text, OptionalTensor visual_prior, OptionalTensor text_prior,
                              int64_t bins) {
  check_dense(visual, text);
  STD_TORCH_CHECK(1 <= bins && bins <= kMaxBins, "bins: too few or too many");
  const Tensor scores = new_tensor(visual, {visual.size(0), visual.size(1)}, accumulation(visual));
  MI_PRUNER_BY_ACCUMULATION(visual, score_by_histograms, dense_samples(visual), visual_prior, dense_samples(text),
                            text_prior, text.size(0) * text.size(1), static_cast<int>(bins), scores);
  return scores;
}

} // namespace
} // namespace mi_pruner::cpu

STABLE_TORCH_LIBRARY_IMPL(mi_pruner_cpu, CPU, m) {
  using namespace mi_pruner::cpu;
  m.impl("mi_scores", MI_PRUNER_BOX(&mi_scores_op));
  m.impl("greedy_select", MI_PRUNER_BOX(&greedy_select_op));
  m.impl("prune", MI_PRUNER_BOX(&prune_op));
  m.impl("mi_scores_varlen", MI_PRUNER_BOX(&mi_scores_varlen_op));
  m.impl("greedy_select_varlen", MI_PRUNER_BOX(&greedy_select_varlen_op));
  m.impl("prune_varlen", MI_PRUNER_BOX(&prune_varlen_op));
  m.impl("histogram_mi_scores", MI_PRUNER_BOX(&histogram_mi_scores_op));
}

STABLE_TORCH_LIBRARY_IMPL(mi_pruner, CPU, m) {
  using namespace mi_pruner::front;
  namespace cpu = mi_pruner::cpu;
  m.impl("mi_scores", MI_PRUNER_BOX(&Public<MiScores, &cpu::mi_scores_op>::call));
  m.impl("greedy_select", MI_PRUNER_BOX(&Public<GreedySelect, &cpu::greedy_select_op>::call));
  m.impl("prune", MI_PRUNER_BOX(&Public<Prune, &cpu::prune_op>::call));
  m.impl("mi_scores_varlen", MI_PRUNER_BOX(&Public<MiScoresVarlen, &cpu::mi_scores_varlen_op>::call));
  m.impl("greedy_select_varlen", MI_PRUNER_BOX(&Public<GreedySelectVarlen, &cpu::greedy_select_varlen_op>::call));
  m.impl("prune_varlen", MI_PRUNER_BOX(&Public<PruneVarlen, &cpu::prune_varlen_op>::call));
  m.impl("histogram_mi_scores", MI_PRUNER_BOX(&Public<HistogramMiScores, &cpu::histogram_mi_scores_op>::call));
}

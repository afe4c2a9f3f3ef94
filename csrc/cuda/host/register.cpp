// The CUDA operators, for PyTorch. Schemas: mi_pruner/_schema.py.
//
// Nothing here waits for the device or reads from it: every size follows from shapes and the Python ints.
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cuda/host/call.h"
#include "front/box.h"
#ifndef MI_PRUNER_CUDA_HOST
#include "front/operators.h"
#endif

#ifdef MI_PRUNER_CUDA_HOST
#define MI_PRUNER_CUDA_KEY CPU
#else
#define MI_PRUNER_CUDA_KEY CUDA
#endif

namespace mi_pruner::cuda {
namespace {

using PickTensors = std::tuple<Tensor, Tensor>;
using TokensAndPicks = std::tuple<Tensor, Tensor, Tensor>;

struct Outputs {
  Tensor indices, gains;
  Outputs(const Tensor& visual, std::initializer_list<int64_t> shape)
      : indices(new_tensor(visual, shape, ScalarType::Long)), gains(new_tensor(visual, shape, ScalarType::Float)) {}

  void clear() {
    torch::stable::fill_(indices, -1);
    torch::stable::fill_(gains, -kInfinity);
  }
};

Picks picks_of(const Layout& slots, const Selecting& selecting, int64_t* indices, float* gains) {
  return {slots, selecting.budget, selecting.min_gain, indices, gains};
}

bool empty(const Layout& layout) { return layout.samples == 0 || layout.longest <= 0; }

Tensor run_scores(const Tensor& visual, const Tokens& visual_tokens, const Tokens& text_tokens,
                  std::initializer_list<int64_t> shape, const std::optional<double>& bandwidth,
                  const std::string& marginal) {
  Tensor scores = new_tensor(visual, shape, ScalarType::Float);
  if (empty(visual_tokens.layout)) return torch::stable::fill_(scores, 0);
  Call call(visual, visual_tokens, text_tokens, {}, nullptr, false);
  call.normalise(bandwidth, marginal, scores.mutable_data_ptr<float>());
  return scores;
}

PickTensors run_select(const Tensor& scores, const Tensor& visual, const Tokens& tokens, const Layout& slots,
                       std::initializer_list<int64_t> shape, const Selecting& selecting) {
  check_array("scores", scores, tokens.layout.total, ScalarType::Float);
  Outputs out(visual, shape);
  if (empty(tokens.layout) || slots.total == 0) {
    out.clear();
  } else {
    Call call(visual, tokens, no_tokens(tokens), slots, &selecting, false);
    call.normalise(std::nullopt, {}, nullptr);
    call.select(
        scores.const_data_ptr<float>(), selecting,
        picks_of(call.slots, selecting, out.indices.mutable_data_ptr<int64_t>(), out.gains.mutable_data_ptr<float>()));
  }
  return {out.indices, out.gains};
}

TokensAndPicks run_prune(const Tensor& visual, const Tokens& visual_tokens, const Tokens& text_tokens,
                         const Layout& slots, std::initializer_list<int64_t> shape,
                         std::initializer_list<int64_t> token_shape, const std::optional<double>& bandwidth,
                         const std::string& marginal, const Selecting& selecting) {
  Outputs sorted(visual, shape);
  Tensor tokens = new_tensor(visual, token_shape, visual.scalar_type());
  if (empty(visual_tokens.layout) || slots.total == 0) {
    sorted.clear();
    torch::stable::fill_(tokens, 0);
  } else {
    Call call(visual, visual_tokens, text_tokens, slots, &selecting, true);
    const Picks picks = picks_of(call.slots, selecting, call.picked_indices, call.picked_gains);
    call.normalise(bandwidth, marginal, call.scores);
    call.select(call.scores, selecting, picks);
    MI_PRUNER_CUDA_CHECK(gather(call.visual, call.dim, element_of(visual), picks, tokens.mutable_data_ptr(),
                                sorted.indices.mutable_data_ptr<int64_t>(), sorted.gains.mutable_data_ptr<float>(),
                                call.target));
  }
  return {tokens, sorted.indices, sorted.gains};
}

Tensor mi_scores(Tensor visual, Tensor text, OptionalTensor visual_prior, OptionalTensor text_prior,
                 std::optional<double> bandwidth, std::string marginal) {
  check_both(visual, text, 3);
  const Guard guard(visual);
  return run_scores(visual, dense_tokens("visual_prior", visual, visual_prior),
                    dense_tokens("text_prior", text, text_prior), {visual.size(0), visual.size(1)}, bandwidth,
                    marginal);
}

PickTensors greedy_select(Tensor scores, Tensor visual, int64_t keep, OptionalTensor visual_prior,
                          double visual_bandwidth, std::string redundancy, double redundancy_weight,
                          OptionalTensor budget, std::optional<double> min_gain, std::optional<double> ratio) {
  check_features("visual", visual, 3, visual.scalar_type());
  const Guard guard(visual);
  return run_select(
      scores, visual, dense_tokens("visual_prior", visual, visual_prior), dense_slots(visual, keep),
      {visual.size(0), keep},
      selecting_of(visual_bandwidth, redundancy, redundancy_weight, min_gain, ratio, budget, visual.size(0)));
}

TokensAndPicks prune(Tensor visual, Tensor text, int64_t keep, OptionalTensor visual_prior, OptionalTensor text_prior,
                     std::optional<double> bandwidth, std::string marginal, double visual_bandwidth,
                     std::string redundancy, double redundancy_weight, OptionalTensor budget,
                     std::optional<double> min_gain, std::optional<double> ratio) {
  check_both(visual, text, 3);
  const Guard guard(visual);
  return run_prune(
      visual, dense_tokens("visual_prior", visual, visual_prior), dense_tokens("text_prior", text, text_prior),
      dense_slots(visual, keep), {visual.size(0), keep}, {visual.size(0), keep, visual.size(2)}, bandwidth, marginal,
      selecting_of(visual_bandwidth, redundancy, redundancy_weight, min_gain, ratio, budget, visual.size(0)));
}

Tensor mi_scores_varlen(Tensor visual, Tensor text, Tensor cu_seqlens_visual, Tensor cu_seqlens_text,
                        int64_t max_seqlen_visual, int64_t max_seqlen_text, OptionalTensor visual_prior,
                        OptionalTensor text_prior, std::optional<double> bandwidth, std::string marginal) {
  check_both(visual, text, 2);
  STD_TORCH_CHECK(cu_seqlens_text.numel() == cu_seqlens_visual.numel(), "cu_seqlens_text: wrong shape");
  const Guard guard(visual);
  const Layout visuals = packed_layout("cu_seqlens_visual", cu_seqlens_visual, visual.size(0), max_seqlen_visual);
  const Layout texts = packed_layout("cu_seqlens_text", cu_seqlens_text, text.size(0), max_seqlen_text);
  return run_scores(visual, tokens_of("visual_prior", visual, visuals, visual_prior),
                    tokens_of("text_prior", text, texts, text_prior), {visual.size(0)}, bandwidth, marginal);
}

PickTensors greedy_select_varlen(Tensor scores, Tensor visual, Tensor cu_seqlens_visual, Tensor cu_keep,
                                 int64_t max_seqlen_visual, int64_t max_keep, int64_t total_keep,
                                 OptionalTensor visual_prior, double visual_bandwidth, std::string redundancy,
                                 double redundancy_weight, std::optional<double> min_gain,
                                 std::optional<double> ratio) {
  check_features("visual", visual, 2, visual.scalar_type());
  const Guard guard(visual);
  const Layout visuals = packed_layout("cu_seqlens_visual", cu_seqlens_visual, visual.size(0), max_seqlen_visual);
  return run_select(scores, visual, tokens_of("visual_prior", visual, visuals, visual_prior),
                    packed_slots(cu_keep, cu_seqlens_visual, max_keep, total_keep), {total_keep},
                    selecting_of(visual_bandwidth, redundancy, redundancy_weight, min_gain, ratio, std::nullopt, 0));
}

TokensAndPicks prune_varlen(Tensor visual, Tensor text, Tensor cu_seqlens_visual, Tensor cu_seqlens_text,
                            Tensor cu_keep, int64_t max_seqlen_visual, int64_t max_seqlen_text, int64_t max_keep,
                            int64_t total_keep, OptionalTensor visual_prior, OptionalTensor text_prior,
                            std::optional<double> bandwidth, std::string marginal, double visual_bandwidth,
                            std::string redundancy, double redundancy_weight, std::optional<double> min_gain,
                            std::optional<double> ratio) {
  check_both(visual, text, 2);
  STD_TORCH_CHECK(cu_seqlens_text.numel() == cu_seqlens_visual.numel(), "cu_seqlens_text: wrong shape");
  const Guard guard(visual);
  const Layout visuals = packed_layout("cu_seqlens_visual", cu_seqlens_visual, visual.size(0), max_seqlen_visual);
  const Layout texts = packed_layout("cu_seqlens_text", cu_seqlens_text, text.size(0), max_seqlen_text);
  return run_prune(visual, tokens_of("visual_prior", visual, visuals, visual_prior),
                   tokens_of("text_prior", text, texts, text_prior),
                   packed_slots(cu_keep, cu_seqlens_visual, max_keep, total_keep), {total_keep},
                   {total_keep, visual.size(1)}, bandwidth, marginal,
                   selecting_of(visual_bandwidth, redundancy, redundancy_weight, min_gain, ratio, std::nullopt, 0));
}

} // namespace
} // namespace mi_pruner::cuda

STABLE_TORCH_LIBRARY_IMPL(mi_pruner_cuda, MI_PRUNER_CUDA_KEY, m) {
  namespace ops = mi_pruner::cuda;
  m.impl("mi_scores", MI_PRUNER_BOX(&ops::mi_scores));
  m.impl("greedy_select", MI_PRUNER_BOX(&ops::greedy_select));
  m.impl("prune", MI_PRUNER_BOX(&ops::prune));
  m.impl("mi_scores_varlen", MI_PRUNER_BOX(&ops::mi_scores_varlen));
  m.impl("greedy_select_varlen", MI_PRUNER_BOX(&ops::greedy_select_varlen));
  m.impl("prune_varlen", MI_PRUNER_BOX(&ops::prune_varlen));
}

#ifndef MI_PRUNER_CUDA_HOST
STABLE_TORCH_LIBRARY_IMPL(mi_pruner, CUDA, m) {
  using namespace mi_pruner::front;
  namespace cuda = mi_pruner::cuda;
  m.impl("mi_scores", MI_PRUNER_BOX(&Public<MiScores, &cuda::mi_scores>::call));
  m.impl("greedy_select", MI_PRUNER_BOX(&Public<GreedySelect, &cuda::greedy_select>::call));
  m.impl("prune", MI_PRUNER_BOX(&Public<Prune, &cuda::prune>::call));
  m.impl("mi_scores_varlen", MI_PRUNER_BOX(&Public<MiScoresVarlen, &cuda::mi_scores_varlen>::call));
  m.impl("greedy_select_varlen", MI_PRUNER_BOX(&Public<GreedySelectVarlen, &cuda::greedy_select_varlen>::call));
  m.impl("prune_varlen", MI_PRUNER_BOX(&Public<PruneVarlen, &cuda::prune_varlen>::call));
}
#endif

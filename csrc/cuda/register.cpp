// The CUDA operators: tensors to launches, with the memory between them. Schemas: mi_pruner/_schema.py.
//
// Nothing here waits for the device or reads from it: every size follows from shapes and the Python ints.
#include <dlfcn.h>

#include <algorithm>
#include <limits>
#include <string>
#include <tuple>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "check.h"
#include "cuda/launch.h"
#include "cuda/paths.h"
#include "cuda/workspace.h"

#ifdef MI_PRUNER_CUDA_HOST
#define MI_PRUNER_CUDA_KEY CPU
#else
#define MI_PRUNER_CUDA_KEY CUDA
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
#endif

// Evaluates a launch; an error of it is not left behind for the next caller of the CUDA runtime.
#define MI_PRUNER_CUDA_CHECK(call)                                                                                     \
  do {                                                                                                                 \
    const cudaError_t error = (call);                                                                                  \
    if (error != cudaSuccess) cudaGetLastError();                                                                      \
    STD_TORCH_CHECK(error == cudaSuccess, #call, ": ", cudaGetErrorString(error));                                     \
  } while (false)

namespace mi_pruner::cuda {
namespace {

using OptionalTensor = std::optional<Tensor>;
using PickTensors = std::tuple<Tensor, Tensor>;
using TokensAndPicks = std::tuple<Tensor, Tensor, Tensor>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The device's current stream. libtorch_cuda.so is there wherever CUDA tensors are, but is not linked: the same file
// loads beside a CPU build of torch. Where it was loaded out of sight of the weak symbol, it is asked by name.
cudaStream_t current_stream([[maybe_unused]] const Tensor& tensor) {
  void* stream = nullptr;
#ifndef MI_PRUNER_CUDA_HOST
  using Getter = int32_t (*)(int32_t, void**);
  static const Getter getter = [] {
    if (aoti_torch_get_current_cuda_stream != nullptr) return &aoti_torch_get_current_cuda_stream;
    void* library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
    return library == nullptr ? nullptr
                              : reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  STD_TORCH_CHECK(getter != nullptr && getter(tensor.get_device_index(), &stream) == 0,
                  "no current stream: libtorch_cuda.so lacks aoti_torch_get_current_cuda_stream");
#endif
  return static_cast<cudaStream_t>(stream);
}

Dtype dtype_of(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Half || type == ScalarType::BFloat16 || type == ScalarType::Float,
                  "features: unsupported dtype");
  return type == ScalarType::Half ? Dtype::kFloat16 : type == ScalarType::BFloat16 ? Dtype::kBFloat16 : Dtype::kFloat32;
}

int64_t element_of(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::Float ? 4 : 2; }

const float* floats(const char* name, const OptionalTensor& tensor, int64_t count) {
  if (!tensor) return nullptr;
  check_array(name, *tensor, count, ScalarType::Float);
  return tensor->const_data_ptr<float>();
}

// Samples.

Layout packed_layout(const char* name, const Tensor& cu, int64_t total, int64_t longest) {
  check_array(name, cu, std::max<int64_t>(cu.numel(), 1), ScalarType::Int);
  return {cu.const_data_ptr<int32_t>(), cu.numel() - 1, total, std::min(longest, total)};
}

Tokens tokens_of(const char* name, const Tensor& tensor, const Layout& layout, const OptionalTensor& prior) {
  const int64_t last = tensor.dim() - 1, element = element_of(tensor);
  const int64_t batch_stride = layout.cu == nullptr ? tensor.stride(0) : 0, stride = tensor.stride(last - 1);
  const bool near = layout.longest == 0 || stride * element / 16 <= 0x7fffffff / layout.longest;
  const bool aligned = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0 &&
                       batch_stride * element % 16 == 0 && stride * element % 16 == 0 && near;
  return {layout, tensor.const_data_ptr(), batch_stride, stride, aligned, floats(name, prior, layout.total)};
}

Tokens dense_tokens(const char* prior_name, const Tensor& tensor, const OptionalTensor& prior) {
  const int64_t samples = tensor.size(0), count = tensor.size(1);
  return tokens_of(prior_name, tensor, {nullptr, samples, samples * count, count}, prior);
}

Tokens no_tokens(const Tokens& visual) {
  return {{nullptr, visual.layout.samples, 0, 0}, visual.features, 0, 0, visual.aligned, nullptr};
}

constexpr int64_t tiles(int64_t count, int64_t size) { return (count + size - 1) / size; }

struct Selecting {
  bool greedy; // else top-k
  Selection how;
  float min_gain;
  const int64_t* budget;
  std::optional<double> ratio;
};

// One call of an operator: what its launches share.
struct Run {
  const Tensor& features;
  const Tokens visual, text;
  const bool rows; // of the selection, if greedy: computed as they are needed
  const std::optional<double> ratio;
  Dtype dtype;
  int64_t dim;
  cudaStream_t stream;
  Workspace workspace;
  Similarities found{};
  Densities densities{};
  RowMemory memory{};
  float* scores = nullptr;

  // The similarities; `selecting` null: for the scores only. Room for scores where they are not given.
  Run(const Tensor& features, const Tokens& visual, const Tokens& text, const Selecting* selecting, bool own_scores)
      : features(features), visual(visual), text(text),
        rows(selecting != nullptr && selecting->greedy && !takes_gram_path(visual.layout.longest)),
        ratio(selecting == nullptr ? std::nullopt : selecting->ratio), dtype(dtype_of(features)),
        dim(features.size(features.dim() - 1)), stream(current_stream(features)) {
    const bool gram = selecting != nullptr && selecting->greedy && !rows;
    reserve(gram);
    if (ratio) workspace.add(densities.most_picks, visual.layout.samples);
    if (rows) reserve_rows();
    if (own_scores) workspace.add(scores, visual.layout.total);
    workspace.allocate(features);
    const float kappa = selecting == nullptr ? 0.0f : selecting->how.kappa;
    MI_PRUNER_CUDA_CHECK(similarity(dtype, visual, text, dim, kappa, found, stream));
  }

  void reserve(bool gram) {
    const int64_t n = visual.layout.total, m = text.layout.total;
    found.row_patches = tiles(visual.layout.longest, kPatch);
    found.text_patches = tiles(text.layout.longest, kPatch);
    found.text_groups = tiles(text.layout.longest, kTextGroup);
    densities.chunks = tiles(visual.layout.longest, kChunkRows);
    found.visual_tiles = gram ? tiles(visual.layout.longest, kTileColumns) : 0;
    // One column of text tiles, if an empty one, also leaves the visual tokens' log weights, where nothing else does.
    found.text_tiles = std::max<int64_t>(tiles(text.layout.longest, kTileColumns), gram ? 0 : 1);
    found.cosine_stride = tiles(text.layout.longest, 4) * 4;
    found.gram_stride = gram ? tiles(visual.layout.longest, 4) * 4 : 0;
    workspace.add(found.visual_log_weight, n);
    workspace.add(found.text_log_weight, m);
    workspace.add(found.cosines, n * found.cosine_stride);
    workspace.add(found.moments, 3 * visual.layout.samples * found.row_patches * found.text_patches);
    workspace.add(found.prior_parts, visual.layout.samples * found.row_patches);
    workspace.add(found.gram, n * found.gram_stride);
    workspace.add(found.parts, n * found.visual_tiles);
    workspace.add(found.arrivals, visual.layout.samples * found.text_groups);
    workspace.add(densities.text_log_z, m);
    workspace.add(densities.text_weight, m);
    workspace.add(densities.kappa, visual.layout.samples);
    workspace.add(densities.null_weight, visual.layout.samples);
    workspace.add(densities.log_total, visual.layout.samples);
    workspace.add(densities.log_prior, n);
    workspace.add(densities.visual_log_z, n);
    workspace.add(densities.text_parts, m * densities.chunks);
  }

  void reserve_rows() {
    MI_PRUNER_CUDA_CHECK(size_teams(dtype, visual.layout.samples, visual.layout.longest, memory));
    workspace.add(memory.rows, memory.teams * kCachedRows * memory.row_stride);
    workspace.add(memory.parts, memory.teams * kCachedRows * memory.tiles);
    workspace.add(memory.log_z, memory.teams * kCachedRows);
    workspace.add(memory.rho, visual.layout.total);
    workspace.add(memory.slot, visual.layout.total);
    workspace.add(memory.posts, 2 * memory.teams * memory.members);
    workspace.add(memory.orders, memory.teams);
    workspace.add(memory.candidates, memory.teams * kMostCandidates);
    workspace.add(memory.arrivals, memory.teams);
  }

  // bandwidth: of the cross-modal kernel; none: by the rule.
  void normalise(const std::optional<double>& bandwidth) {
    const float kappa = bandwidth ? static_cast<float>(1 / (*bandwidth * *bandwidth)) : 0.0f;
    MI_PRUNER_CUDA_CHECK(normalisers(visual.layout, text.layout, found, kappa, ratio.value_or(0), densities,
                                     memory.arrivals, rows ? memory.teams : 0, stream));
  }

  void score(const std::string& marginal, float* to) {
    MI_PRUNER_CUDA_CHECK(cuda::scores(visual.layout, text.layout, found, densities, marginal == "joint", to, stream));
  }

  void select(const float* from, const Selecting& selecting, Picks picks) {
    picks.most_picks = densities.most_picks;
    if (!selecting.greedy)
      MI_PRUNER_CUDA_CHECK(top_k(visual.layout, from, densities.log_prior, picks, stream));
    else if (rows)
      MI_PRUNER_CUDA_CHECK(greedy_on_rows(dtype, visual, dim, from, densities, selecting.how, memory, picks, stream));
    else
      MI_PRUNER_CUDA_CHECK(greedy_on_gram(visual.layout, from, found, densities, selecting.how, picks, stream));
  }
};

// The operators.

Selecting selecting_of(double bandwidth, const std::string& redundancy, double weight,
                       const std::optional<double>& min_gain, const std::optional<double>& ratio,
                       const OptionalTensor& budget, int64_t samples) {
  STD_TORCH_CHECK(redundancy == "mean" || redundancy == "chain" || redundancy == "max" || redundancy == "none",
                  "redundancy: unknown mode ", redundancy);
  if (budget) check_array("budget", *budget, samples, ScalarType::Long);
  const Redundancy mode = redundancy == "chain" ? Redundancy::kChain
                          : redundancy == "max" ? Redundancy::kMax
                                                : Redundancy::kMean;
  return {redundancy != "none" && weight != 0,
          {static_cast<float>(1 / (bandwidth * bandwidth)), mode, static_cast<float>(weight)},
          min_gain ? static_cast<float>(*min_gain) : -kInfinity,
          budget ? budget->const_data_ptr<int64_t>() : nullptr,
          ratio};
}

struct Outputs {
  Tensor indices, gains;
  Outputs(const Tensor& visual, std::initializer_list<int64_t> shape)
      : indices(torch::stable::new_empty(visual, shape, ScalarType::Long)),
        gains(torch::stable::new_empty(visual, shape, ScalarType::Float)) {}

  Picks picks(const Layout& slots, const Selecting& selecting) {
    return {slots, selecting.budget, selecting.min_gain, indices.mutable_data_ptr<int64_t>(),
            gains.mutable_data_ptr<float>()};
  }

  void clear() {
    torch::stable::fill_(indices, -1);
    torch::stable::fill_(gains, -kInfinity);
  }
};

bool empty(const Layout& layout) { return layout.samples == 0 || layout.longest <= 0; }

Tensor run_scores(const Tensor& visual, const Tokens& visual_tokens, const Tokens& text_tokens,
                  std::initializer_list<int64_t> shape, const std::optional<double>& bandwidth,
                  const std::string& marginal) {
  Tensor scores = torch::stable::new_empty(visual, shape, ScalarType::Float);
  if (empty(visual_tokens.layout)) return torch::stable::fill_(scores, 0);
  Run run(visual, visual_tokens, text_tokens, nullptr, false);
  run.normalise(bandwidth);
  run.score(marginal, scores.mutable_data_ptr<float>());
  return scores;
}

PickTensors run_select(const Tensor& scores, const Tensor& visual, const Tokens& tokens, const Layout& slots,
                       std::initializer_list<int64_t> shape, const Selecting& selecting) {
  check_array("scores", scores, tokens.layout.total, ScalarType::Float);
  Outputs out(visual, shape);
  if (empty(tokens.layout) || slots.total == 0) {
    out.clear();
  } else {
    Run run(visual, tokens, no_tokens(tokens), &selecting, false);
    run.normalise(std::nullopt);
    run.select(scores.const_data_ptr<float>(), selecting, out.picks(slots, selecting));
  }
  return {out.indices, out.gains};
}

TokensAndPicks run_prune(const Tensor& visual, const Tokens& visual_tokens, const Tokens& text_tokens,
                         const Layout& slots, std::initializer_list<int64_t> shape,
                         std::initializer_list<int64_t> token_shape, const std::optional<double>& bandwidth,
                         const std::string& marginal, const Selecting& selecting) {
  Outputs picked(visual, shape), sorted(visual, shape);
  Tensor tokens = torch::stable::new_empty(visual, token_shape);
  if (empty(visual_tokens.layout) || slots.total == 0) {
    sorted.clear();
    torch::stable::fill_(tokens, 0);
  } else {
    const Picks picks = picked.picks(slots, selecting);
    Run run(visual, visual_tokens, text_tokens, &selecting, true);
    run.normalise(bandwidth);
    run.score(marginal, run.scores);
    run.select(run.scores, selecting, picks);
    MI_PRUNER_CUDA_CHECK(gather(visual_tokens, run.dim, element_of(visual), picks, tokens.mutable_data_ptr(),
                                sorted.indices.mutable_data_ptr<int64_t>(), sorted.gains.mutable_data_ptr<float>(),
                                run.stream));
  }
  return {tokens, sorted.indices, sorted.gains};
}

#ifdef MI_PRUNER_CUDA_HOST
struct Guard {
  explicit Guard(const Tensor&) {}
};
#else
struct Guard : torch::stable::accelerator::DeviceGuard {
  explicit Guard(const Tensor& tensor) : DeviceGuard(tensor.get_device_index()) {}
};
#endif

void check_both(const Tensor& visual, const Tensor& text, int64_t dim) {
  check_features("visual", visual, dim, visual.scalar_type());
  check_features("text", text, dim, visual.scalar_type());
  STD_TORCH_CHECK(text.size(dim - 1) == visual.size(dim - 1) && (dim == 2 || text.size(0) == visual.size(0)),
                  "text: wrong shape");
}

Layout dense_slots(const Tensor& visual, int64_t keep) {
  return {nullptr, visual.size(0), visual.size(0) * keep, keep};
}

Layout packed_slots(const Tensor& cu_keep, const Tensor& cu_visual, int64_t max_keep, int64_t total_keep) {
  STD_TORCH_CHECK(cu_keep.numel() == cu_visual.numel(), "cu_keep: wrong shape");
  return packed_layout("cu_keep", cu_keep, total_keep, max_keep);
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
  m.impl("mi_scores", TORCH_BOX(&ops::mi_scores));
  m.impl("greedy_select", TORCH_BOX(&ops::greedy_select));
  m.impl("prune", TORCH_BOX(&ops::prune));
  m.impl("mi_scores_varlen", TORCH_BOX(&ops::mi_scores_varlen));
  m.impl("greedy_select_varlen", TORCH_BOX(&ops::greedy_select_varlen));
  m.impl("prune_varlen", TORCH_BOX(&ops::prune_varlen));
}

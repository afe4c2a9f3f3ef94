// One call of an operator: the memory between its launches, and these in their order.
#pragma once

#include <algorithm>
#include <limits>
#include <optional>
#include <string>

#include "cuda/base/paths.h"
#include "cuda/host/tensors.h"
#include "cuda/host/workspace.h"
#include "cuda/launch/launches.h"

// Evaluates a launch; an error of it is not left behind for the next caller of the CUDA runtime.
#define MI_PRUNER_CUDA_CHECK(call)                                                                                     \
  do {                                                                                                                 \
    const cudaError_t error = (call);                                                                                  \
    if (error != cudaSuccess) cudaGetLastError();                                                                      \
    STD_TORCH_CHECK(error == cudaSuccess, #call, ": ", cudaGetErrorString(error));                                     \
  } while (false)

namespace mi_pruner::cuda {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Selecting {
  bool greedy; // else top-k
  Selection how;
  float min_gain;
  const int64_t* budget;
  std::optional<double> ratio;
};

inline Selecting selecting_of(double bandwidth, const std::string& redundancy, double weight,
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

// One call of an operator: what its launches share.
struct Call {
  const Tensor& features;
  Tokens visual, text;
  Layout slots;
  const bool rows; // of the selection, if greedy: computed as they are needed
  const std::optional<double> ratio;
  Dtype dtype;
  int64_t dim;
  Target target{};
  Workspace workspace;
  Similarities found{};
  Densities densities{};
  RowMemory memory{};
  // Of a prune, its own; the picks in order of selection.
  float* scores = nullptr;
  int64_t* picked_indices = nullptr;
  float* picked_gains = nullptr;

  // The similarities; `selecting` null: for the scores only. `prune`: room for what lies between the two.
  Call(const Tensor& features, const Tokens& visual, const Tokens& text, const Layout& slots,
       const Selecting* selecting, bool prune)
      : features(features), visual(visual), text(text), slots(slots),
        rows(selecting != nullptr && selecting->greedy && !takes_gram_path(visual.layout.longest)),
        ratio(selecting == nullptr ? std::nullopt : selecting->ratio), dtype(dtype_of(features)),
        dim(features.size(features.dim() - 1)) {
    MI_PRUNER_CUDA_CHECK(find_target(device_of(features), current_stream(features), target));
    start(selecting, prune);
  }

  // Not in the constructor, whose arguments hide the layouts that are made whole here.
  void start(const Selecting* selecting, bool prune) {
    const bool gram = selecting != nullptr && selecting->greedy && !rows;
    found.kappa = selecting == nullptr ? 0.0f : selecting->how.kappa;
    reserve(gram);
    if (ratio) workspace.add(densities.most_picks, visual.layout.samples);
    if (rows) reserve_rows();
    if (prune) {
      workspace.add(scores, visual.layout.total);
      workspace.add(picked_indices, slots.total);
      workspace.add(picked_gains, slots.total);
    }
    workspace.allocate(features);
    MI_PRUNER_CUDA_CHECK(similarity(dtype, visual, text, slots, dim, found, target));
  }

  void reserve(bool gram) {
    const int64_t n = visual.layout.total, m = text.layout.total;
    found.row_patches = tiles(visual.layout.longest, kPatchRows);
    found.text_patches = tiles(text.layout.longest, kPatchColumns);
    found.text_groups = tiles(text.layout.longest, kTextGroup);
    densities.chunks = tiles(visual.layout.longest, kChunkRows);
    found.visual_tiles = gram ? tiles(visual.layout.longest, kTileColumns) : 0;
    // One column of text tiles, if an empty one, also leaves the visual tokens' log weights, where nothing else does.
    found.text_tiles = std::max<int64_t>(tiles(text.layout.longest, kTileColumns), gram ? 0 : 1);
    found.cosine_stride = tiles(text.layout.longest, 4) * 4;
    found.gram_stride = gram ? tiles(visual.layout.longest, 4) * 4 : 0;
    for (Layout* layout : {&visual.layout, &text.layout, &slots})
      if (layout->packed()) workspace.add(layout->cu, layout->samples + 1);
    workspace.add(found.visual_log_weight, n);
    workspace.add(found.text_log_weight, m);
    workspace.add(found.cosines, n * found.cosine_stride);
    workspace.add(found.moments, 3 * visual.layout.samples * found.row_patches * found.text_patches);
    workspace.add(found.prior_parts, visual.layout.samples * found.row_patches);
    workspace.add(found.gram, n * found.gram_stride);
    if (gram || rows) workspace.add(found.visual_norm, n);
    workspace.add(found.arrivals, visual.layout.samples * found.text_groups);
    workspace.add(found.terms, first_term(visual.layout.samples, m));
    workspace.add(densities.log_total, visual.layout.samples);
    workspace.add(densities.log_prior, n);
    workspace.add(densities.text_parts, m * densities.chunks);
  }

  void reserve_rows() {
    MI_PRUNER_CUDA_CHECK(size_rows(dtype, visual.layout, slots.longest, target, memory));
    workspace.add(memory.rows, memory.teams * memory.cached() * memory.row_stride);
    workspace.add(memory.log_z, memory.teams * memory.cached());
    workspace.add(memory.parts, memory.teams * kProductRows * memory.tiles);
    workspace.add(memory.rho, visual.layout.total);
    workspace.add(memory.slot, visual.layout.total);
    workspace.add(memory.orders, memory.teams);
    workspace.add(memory.counters, memory.counter_count());
  }

  // bandwidth: of the cross-modal kernel; none: by the rule. The scores go to `to`; null: none are wanted.
  void normalise(const std::optional<double>& bandwidth, const std::string& marginal, float* to) {
    const float kappa = bandwidth ? static_cast<float>(1 / (*bandwidth * *bandwidth)) : 0.0f;
    MI_PRUNER_CUDA_CHECK(normalisers(visual.layout, text.layout, found, kappa, ratio.value_or(0), densities,
                                     {to, marginal == "joint"}, memory.counters, rows ? memory.counter_count() : 0,
                                     target));
  }

  void select(const float* from, const Selecting& selecting, Picks picks) {
    picks.most_picks = densities.most_picks;
    if (!selecting.greedy)
      MI_PRUNER_CUDA_CHECK(top_k(visual.layout, from, densities.log_prior, picks, target));
    else if (rows)
      MI_PRUNER_CUDA_CHECK(
          greedy_on_rows(dtype, visual, found.visual_norm, dim, from, densities, selecting.how, memory, picks, target));
    else
      MI_PRUNER_CUDA_CHECK(greedy_by_warp(visual.layout, from, found, densities, selecting.how, picks, target));
  }
};

} // namespace mi_pruner::cuda

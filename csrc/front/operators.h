// The public operators, as the library implements them. What mi_pruner/_checks.py would accept is brought into the form
// of the compiled operators and goes to these; all else to Python, which has the words for what is wrong. So each
// condition here is one of that file, or stricter.
#pragma once

#include <cmath>
#include <string>

#include "front/python.h"
#include "new_tensor.h"

namespace mi_pruner::front {

using Number = std::optional<double>;

// Conditions.

inline bool same_device(const Tensor& tensor, const Tensor& visual) {
  return device_type(tensor) == device_type(visual) && tensor.get_device_index() == visual.get_device_index();
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Half || type == ScalarType::BFloat16 || type == ScalarType::Float ||
         type == ScalarType::Double;
}

inline bool is_features(const Tensor& tensor, int64_t dim) {
  if (!tensor.defined()) return false; // None
  const ScalarType type = tensor.scalar_type();
  return tensor.dim() == dim && is_floating(type) &&
         (type != ScalarType::Double || device_type(tensor) == aoti_torch_device_type_cpu());
}

inline bool is_visual(const Tensor& visual) { return is_features(visual, 3) && visual.size(1) >= 1; }

inline bool is_text(const Tensor& text, const Tensor& visual) {
  const int64_t dim = visual.dim();
  return is_features(text, dim) && text.scalar_type() == visual.scalar_type() && same_device(text, visual) &&
         text.size(dim - 1) == visual.size(dim - 1) &&
         (dim == 2 || (text.size(0) == visual.size(0) && text.size(1) >= 1));
}

// A number for each token.
inline bool fits(const Tensor& tensor, const Tensor& tokens) {
  const int64_t dim = tokens.dim() - 1;
  if (!tensor.defined() || tensor.dim() != dim || !same_device(tensor, tokens)) return false;
  for (int64_t i = 0; i < dim; ++i)
    if (tensor.size(i) != tokens.size(i)) return false;
  return true;
}

inline bool is_prior(const OptionalTensor& prior, const Tensor& tokens) {
  return !prior ||
         (fits(*prior, tokens) && (is_floating(prior->scalar_type()) || prior->scalar_type() == ScalarType::Bool));
}

inline bool is_scores(const Tensor& scores, const Tensor& visual) {
  return fits(scores, visual) && is_floating(scores.scalar_type());
}

inline bool is_budget(const OptionalTensor& budget, const Tensor& visual) {
  return !budget || (budget->defined() && budget->dim() == 1 && budget->size(0) == visual.size(0) &&
                     same_device(*budget, visual) &&
                     (budget->scalar_type() == ScalarType::Int || budget->scalar_type() == ScalarType::Long));
}

inline bool is_cu(const Tensor& cu, const Tensor& cu_visual, const Tensor& visual) {
  return cu.defined() && cu_visual.defined() && cu.dim() == 1 && cu.size(0) >= 1 && cu.size(0) == cu_visual.size(0) &&
         cu.scalar_type() == ScalarType::Int && same_device(cu, visual);
}

inline bool is_keep(int64_t keep, const Tensor& visual) { return 1 <= keep && keep <= visual.size(1); }

inline bool is_bandwidth(double value) { return limits().min_bandwidth <= value && value <= limits().max_bandwidth; }

inline bool is_scoring(const Number& bandwidth, const std::string& marginal) {
  return (!bandwidth || is_bandwidth(*bandwidth)) && (marginal == "joint" || marginal == "prior");
}

inline bool is_selecting(double bandwidth, const std::string& redundancy, double weight, const Number& min_gain,
                         const Number& ratio) {
  return is_bandwidth(bandwidth) &&
         (redundancy == "mean" || redundancy == "chain" || redundancy == "max" || redundancy == "none") &&
         0 <= weight && weight <= limits().max_weight && (!min_gain || !std::isnan(*min_gain)) &&
         (!ratio || (0 < *ratio && *ratio <= 1));
}

// The form of the compiled operators' arguments: as `_canonical` in mi_pruner/_dispatch.py brings them into.

inline void make_features(Tensor& tensor) {
  if (tensor.stride(tensor.dim() - 1) != 1) tensor = copy_of(tensor, tensor.scalar_type());
}

inline void make_array(Tensor& tensor, ScalarType dtype) {
  if (tensor.scalar_type() != dtype || !tensor.is_contiguous()) tensor = copy_of(tensor, dtype);
}

inline void make_array(OptionalTensor& tensor, ScalarType dtype) {
  if (tensor) make_array(*tensor, dtype);
}

// An operator each: whether its arguments are right; they are in form then.

struct MiScores {
  static constexpr const char* kName = "mi_pruner_python::mi_scores";
  static bool take(Tensor& visual, Tensor& text, OptionalTensor& visual_prior, OptionalTensor& text_prior,
                   Number& bandwidth, std::string& marginal) {
    if (!is_visual(visual) || !is_text(text, visual) || !is_prior(visual_prior, visual) ||
        !is_prior(text_prior, text) || !is_scoring(bandwidth, marginal))
      return false;
    make_both(visual, text, visual_prior, text_prior);
    return true;
  }
  static void make_both(Tensor& visual, Tensor& text, OptionalTensor& visual_prior, OptionalTensor& text_prior) {
    const ScalarType dtype = accumulation(visual);
    make_features(visual);
    make_features(text);
    make_array(visual_prior, dtype);
    make_array(text_prior, dtype);
  }
};

struct GreedySelect {
  static constexpr const char* kName = "mi_pruner_python::greedy_select";
  static bool take(Tensor& scores, Tensor& visual, int64_t& keep, OptionalTensor& visual_prior,
                   double& visual_bandwidth, std::string& redundancy, double& redundancy_weight, OptionalTensor& budget,
                   Number& min_gain, Number& ratio) {
    if (!is_visual(visual) || !is_prior(visual_prior, visual) || !is_budget(budget, visual) ||
        !is_scores(scores, visual) || !is_keep(keep, visual) ||
        !is_selecting(visual_bandwidth, redundancy, redundancy_weight, min_gain, ratio))
      return false;
    const ScalarType dtype = accumulation(visual);
    make_features(visual);
    make_array(scores, dtype);
    make_array(visual_prior, dtype);
    make_array(budget, ScalarType::Long);
    return true;
  }
};

struct Prune {
  static constexpr const char* kName = "mi_pruner_python::prune";
  static bool take(Tensor& visual, Tensor& text, int64_t& keep, OptionalTensor& visual_prior,
                   OptionalTensor& text_prior, Number& bandwidth, std::string& marginal, double& visual_bandwidth,
                   std::string& redundancy, double& redundancy_weight, OptionalTensor& budget, Number& min_gain,
                   Number& ratio) {
    if (!is_visual(visual) || !is_budget(budget, visual) || !is_keep(keep, visual) ||
        !is_selecting(visual_bandwidth, redundancy, redundancy_weight, min_gain, ratio) ||
        !MiScores::take(visual, text, visual_prior, text_prior, bandwidth, marginal))
      return false;
    make_array(budget, ScalarType::Long);
    return true;
  }
};

struct MiScoresVarlen {
  static constexpr const char* kName = "mi_pruner_python::mi_scores_varlen";
  static bool take(Tensor& visual, Tensor& text, Tensor& cu_seqlens_visual, Tensor& cu_seqlens_text,
                   int64_t& max_seqlen_visual, int64_t& max_seqlen_text, OptionalTensor& visual_prior,
                   OptionalTensor& text_prior, Number& bandwidth, std::string& marginal) {
    if (!is_features(visual, 2) || !is_text(text, visual) || !is_cu(cu_seqlens_visual, cu_seqlens_visual, visual) ||
        !is_cu(cu_seqlens_text, cu_seqlens_visual, visual) || max_seqlen_visual < 0 || max_seqlen_text < 0 ||
        !is_prior(visual_prior, visual) || !is_prior(text_prior, text) || !is_scoring(bandwidth, marginal))
      return false;
    MiScores::make_both(visual, text, visual_prior, text_prior);
    make_array(cu_seqlens_visual, ScalarType::Int);
    make_array(cu_seqlens_text, ScalarType::Int);
    return true;
  }
};

struct GreedySelectVarlen {
  static constexpr const char* kName = "mi_pruner_python::greedy_select_varlen";
  static bool take(Tensor& scores, Tensor& visual, Tensor& cu_seqlens_visual, Tensor& cu_keep,
                   int64_t& max_seqlen_visual, int64_t& max_keep, int64_t& total_keep, OptionalTensor& visual_prior,
                   double& visual_bandwidth, std::string& redundancy, double& redundancy_weight, Number& min_gain,
                   Number& ratio) {
    if (!is_features(visual, 2) || !is_scores(scores, visual) || !is_cu(cu_seqlens_visual, cu_seqlens_visual, visual) ||
        !is_cu(cu_keep, cu_seqlens_visual, visual) || max_seqlen_visual < 0 || max_keep < 0 || total_keep < 0 ||
        !is_prior(visual_prior, visual) ||
        !is_selecting(visual_bandwidth, redundancy, redundancy_weight, min_gain, ratio))
      return false;
    const ScalarType dtype = accumulation(visual);
    make_features(visual);
    make_array(scores, dtype);
    make_array(visual_prior, dtype);
    make_array(cu_seqlens_visual, ScalarType::Int);
    make_array(cu_keep, ScalarType::Int);
    return true;
  }
};

struct PruneVarlen {
  static constexpr const char* kName = "mi_pruner_python::prune_varlen";
  static bool take(Tensor& visual, Tensor& text, Tensor& cu_seqlens_visual, Tensor& cu_seqlens_text, Tensor& cu_keep,
                   int64_t& max_seqlen_visual, int64_t& max_seqlen_text, int64_t& max_keep, int64_t& total_keep,
                   OptionalTensor& visual_prior, OptionalTensor& text_prior, Number& bandwidth, std::string& marginal,
                   double& visual_bandwidth, std::string& redundancy, double& redundancy_weight, Number& min_gain,
                   Number& ratio) {
    if (!is_features(visual, 2) || !is_cu(cu_seqlens_visual, cu_seqlens_visual, visual) ||
        !is_cu(cu_keep, cu_seqlens_visual, visual) || max_keep < 0 || total_keep < 0 ||
        !is_selecting(visual_bandwidth, redundancy, redundancy_weight, min_gain, ratio) ||
        !MiScoresVarlen::take(visual, text, cu_seqlens_visual, cu_seqlens_text, max_seqlen_visual, max_seqlen_text,
                              visual_prior, text_prior, bandwidth, marginal))
      return false;
    make_array(cu_keep, ScalarType::Int);
    return true;
  }
};

struct HistogramMiScores {
  static constexpr const char* kName = "mi_pruner_python::histogram_mi_scores";
  static bool take(Tensor& visual, Tensor& text, OptionalTensor& visual_prior, OptionalTensor& text_prior,
                   int64_t& bins) {
    if (!is_visual(visual) || !is_text(text, visual) || !is_prior(visual_prior, visual) ||
        !is_prior(text_prior, text) || bins < limits().min_bins || bins > limits().max_bins)
      return false;
    MiScores::make_both(visual, text, visual_prior, text_prior);
    return true;
  }
};

template <typename Operator, auto compiled> struct Public;
template <typename Operator, typename Result, typename... Arguments, Result (*compiled)(Arguments...)>
struct Public<Operator, compiled> {
  static Result call(Arguments... arguments) {
    if (first_is_direct(arguments...) && Operator::take(arguments...)) return compiled(std::move(arguments)...);
    return in_python<Result>(Operator::kName, arguments...);
  }

private:
  static bool first_is_direct(const Tensor& first, const auto&...) { return first.defined() && direct(first); }
};

} // namespace mi_pruner::front

// Scores from histograms of the coordinates: a row of bins for each token, then a count of the cells for each pair.
#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"
#include "cpu/sample.h"

namespace mi_pruner::cpu {
namespace {

constexpr double kCoordinate = 1; // ns: its bin, or to count it

} // namespace

template <typename Acc> std::vector<Acc> information_terms(int64_t dim) {
  std::vector<Acc> terms(dim + 1, Acc(0)); // 0 log 0 = 0
  for (int64_t count = 1; count <= dim; ++count) {
    const double p = static_cast<double>(count) / static_cast<double>(dim);
    terms[count] = static_cast<Acc>(p * std::log(p));
  }
  return terms;
}

// I = sum over cells of p log p, less the same sums of both marginals. A marginal is the diagonal of a vector's
// histogram with itself, so that one function counts and sums all three, and a constant vector gives exactly 0.
template <typename Acc>
void histogram_mi_scores(const Rows& visual, const Acc* visual_prior, const Tokens<Acc>& text, int bins,
                         const std::vector<Acc>& terms, Acc* scores) {
  std::fill_n(scores, visual.count, Acc(0));
  const auto& k = kernels<Acc>();
  const int64_t dim = visual.dim, count = static_cast<int64_t>(text.valid.size());
  if (dim == 0) return;
  Buffer<uint8_t> words(count * dim);
  std::vector<Acc> marginal(count), weight(count);
  parallel_for(count, 2 * kCoordinate * dim, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      uint8_t* word = words.get() + j * dim;
      k.bin_row(text.rows, text.valid[j], bins, word);
      marginal[j] = k.sum_over_cells(word, word, dim, bins, terms.data());
      weight[j] = std::exp(text.log_prior[text.valid[j]]);
    }
  });
  const Tokens<Acc> tokens = prepare(visual, visual_prior);
  const double ns = kCoordinate * dim * (count + 2); // of a token: its bins, its own marginal, the words
  parallel_for(static_cast<int64_t>(tokens.valid.size()), ns, [&](int64_t begin, int64_t end) {
    Buffer<uint8_t> own(dim);
    for (int64_t v = begin; v < end; ++v) {
      const int64_t i = tokens.valid[v];
      k.bin_row(visual, i, bins, own.get());
      const Acc own_marginal = k.sum_over_cells(own.get(), own.get(), dim, bins, terms.data());
      for (int64_t j = 0; j < count; ++j) {
        const Acc joint = k.sum_over_cells(own.get(), words.get() + j * dim, dim, bins, terms.data());
        scores[i] += weight[j] * (joint - own_marginal - marginal[j]);
      }
    }
  });
}

template std::vector<float> information_terms(int64_t);
template std::vector<double> information_terms(int64_t);
template void histogram_mi_scores(const Rows&, const float*, const Tokens<float>&, int, const std::vector<float>&,
                                  float*);
template void histogram_mi_scores(const Rows&, const double*, const Tokens<double>&, int, const std::vector<double>&,
                                  double*);

} // namespace mi_pruner::cpu

// Counts what the guess of the next picks costs, without Torch: what bench/speed/guess.py asks.
//
//     guess_driver FILE TOKENS KEEP WIDTH TEXT mean|chain|max WEIGHT
//
// FILE: float32, visual (TOKENS, WIDTH), text (TEXT, WIDTH), prior (TOKENS). Prints: picks, rows that were computed, in
// how many products, and rows that were drafted.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/sample.h"

namespace mi_pruner::cpu {

void parallel_for(int64_t count, double, const std::function<void(int64_t, int64_t)>& body) { body(0, count); }

namespace baseline {
extern const Kernels<float> kFloat;
extern const Kernels<double> kDouble;
} // namespace baseline

namespace {

int64_t rows = 0, blocks = 0, drafted = 0;

void counted_products(const Rows& features, int64_t begin, int64_t end, const float* panel, int64_t count,
                      float* const* out, float* square) {
  if (square == nullptr) { // those with the text come with norms
    rows += count;
    ++blocks;
  }
  baseline::kFloat.products(features, begin, end, panel, count, out, square);
}

void counted_cosines(const int16_t* sketch, const int16_t* of, int64_t padded, float* cosines) {
  ++drafted;
  baseline::kFloat.sketched_cosines(sketch, of, padded, cosines);
}

Kernels<float> counted() {
  Kernels<float> table = baseline::kFloat;
  table.products = counted_products;
  table.sketched_cosines = counted_cosines;
  return table;
}

} // namespace

template <> const Kernels<float>& kernels() {
  static const Kernels<float> table = counted();
  return table;
}

template <> const Kernels<double>& kernels() { return baseline::kDouble; }

} // namespace mi_pruner::cpu

int main(int argc, char** argv) {
  using namespace mi_pruner::cpu;
  if (argc != 8) {
    std::fprintf(stderr, "expected FILE TOKENS KEEP WIDTH TEXT REDUNDANCY WEIGHT, got %d arguments\n", argc - 1);
    return 2;
  }
  const int64_t tokens = std::atoll(argv[2]), keep = std::atoll(argv[3]);
  const int64_t width = std::atoll(argv[4]), text = std::atoll(argv[5]);
  const std::string mode = argv[6];
  const Redundancy redundancy = mode == "mean"    ? Redundancy::kMean
                                : mode == "chain" ? Redundancy::kChain
                                                  : Redundancy::kMax;
  std::vector<float> values(static_cast<size_t>((tokens + text) * width + tokens));
  std::FILE* file = std::fopen(argv[1], "rb");
  if (file == nullptr || std::fread(values.data(), sizeof(float), values.size(), file) != values.size()) {
    std::fprintf(stderr, "%s: expected %zu numbers\n", argv[1], values.size());
    return 2;
  }
  std::fclose(file);
  const Rows visual{values.data(), width, tokens, width, Dtype::kFloat32};
  const Rows words{values.data() + tokens * width, width, text, width, Dtype::kFloat32};
  const float* prior = values.data() + (tokens + text) * width;
  std::vector<float> scores(static_cast<size_t>(tokens)), gains(static_cast<size_t>(keep));
  std::vector<int64_t> indices(static_cast<size_t>(keep));
  const Tokens<float> prepared =
      mi_scores<float>(visual, prior, prepare<float>(words, nullptr), {std::nullopt, true}, scores.data());
  const SelectOptions options{0.63, redundancy, std::atof(argv[7]), std::nullopt, std::nullopt};
  const int64_t picks = greedy_select<float>(prepared, scores.data(), keep, options, indices.data(), gains.data());
  std::printf("%lld %lld %lld %lld\n", static_cast<long long>(picks), static_cast<long long>(rows),
              static_cast<long long>(blocks), static_cast<long long>(drafted));
  return 0;
}

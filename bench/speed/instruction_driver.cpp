// Scores and selects once, on one thread, without Torch: what bench/speed/instructions.py counts the instructions of.
//
//     instruction_driver TOKENS KEEP WIDTH TEXT float32|bfloat16 joint|prior mean|chain|max|none
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/sample.h"

namespace mi_pruner::cpu {
void parallel_for(int64_t count, double, const std::function<void(int64_t, int64_t)>& body) { body(0, count); }
} // namespace mi_pruner::cpu

namespace {

using namespace mi_pruner::cpu;

// Clustered features, the same everywhere: integer arithmetic, exact in float32, and a few bits that bfloat16 cuts off.
class Features {
public:
  Features(int64_t count, int64_t width, int64_t clusters, Dtype dtype)
      : count_(count), width_(width), dtype_(dtype), wide_(static_cast<size_t>(count * width)), half_(wide_.size()) {
    std::vector<float> centres(static_cast<size_t>(clusters * width));
    for (float& value : centres)
      value = noise();
    for (int64_t i = 0; i < count; ++i)
      for (int64_t d = 0; d < width; ++d) {
        const float value = 2 * centres[static_cast<size_t>(i % clusters * width + d)] + noise();
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        wide_[static_cast<size_t>(i * width + d)] = value;
        half_[static_cast<size_t>(i * width + d)] = static_cast<uint16_t>(bits >> 16);
      }
  }
  Rows rows() const {
    const bool wide = dtype_ == Dtype::kFloat32;
    return {wide ? static_cast<const void*>(wide_.data()) : half_.data(), width_, count_, width_, dtype_};
  }

private:
  float noise() { // a linear congruential generator: [-1, 1)
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<int32_t>(state_ >> 48) - (1 << 15)) / (1 << 15);
  }

  int64_t count_, width_;
  Dtype dtype_;
  uint64_t state_ = 1;
  std::vector<float> wide_;
  std::vector<uint16_t> half_;
};

Redundancy redundancy_of(const std::string& name) {
  return name == "mean"    ? Redundancy::kMean
         : name == "chain" ? Redundancy::kChain
         : name == "max"   ? Redundancy::kMax
                           : Redundancy::kNone;
}

} // namespace

// Callgrind counts from its entry to its return.
extern "C" __attribute__((noinline)) int64_t measured(const Rows& visual, const Rows& words, int64_t keep, bool joint,
                                                      Redundancy redundancy, float* scores, int64_t* indices,
                                                      float* gains) {
  const Tokens<float> text = prepare<float>(words, nullptr);
  const Tokens<float> tokens = mi_scores<float>(visual, nullptr, text, {std::nullopt, joint}, scores);
  return greedy_select<float>(tokens, scores, keep, {0.63, redundancy, 1.0, std::nullopt, std::nullopt}, indices,
                              gains);
}

int main(int argc, char** argv) {
  if (argc != 8) {
    std::fprintf(stderr, "expected TOKENS KEEP WIDTH TEXT DTYPE MARGINAL REDUNDANCY, got %d arguments\n", argc - 1);
    return 2;
  }
  const int64_t tokens = std::atoll(argv[1]), keep = std::atoll(argv[2]);
  const int64_t width = std::atoll(argv[3]), text = std::atoll(argv[4]);
  const Dtype dtype = std::string(argv[5]) == "bfloat16" ? Dtype::kBFloat16 : Dtype::kFloat32;
  const Features visual(tokens, width, tokens / 10 + 1, dtype), words(text, width, text, dtype);
  std::vector<float> scores(static_cast<size_t>(tokens)), gains(static_cast<size_t>(keep));
  std::vector<int64_t> indices(static_cast<size_t>(keep));
  kernels<float>(); // chosen here: looking for MI_PRUNER_ISA takes as long as the environment is large
  const int64_t picked = measured(visual.rows(), words.rows(), keep, std::string(argv[6]) == "joint",
                                  redundancy_of(argv[7]), scores.data(), indices.data(), gains.data());
  std::printf("%lld\n", static_cast<long long>(picked));
  return picked == keep ? 0 : 1;
}

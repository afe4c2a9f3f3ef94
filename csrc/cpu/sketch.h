// A short form of a sample's features, for guesses. Free of Torch. Acc: float, or double for float64 features.
#pragma once

#include <cstdint>

#include "cpu/buffer.h"
#include "cpu/sample.h"

namespace mi_pruner::cpu {

// Of the whole groups of coordinates: the last dim % kGroupWidth take no part, and of fewer there is nothing but zeros.
template <typename Acc> class Sketch {
public:
  explicit Sketch(const Tokens<Acc>& tokens);

  // cosines[i] with token j, about: for all i, padded.
  void cosines(int64_t j, Acc* cosines) const;

private:
  int64_t length_;
  Buffer<int16_t> sketch_; // (padded, kSketchWidth)
};

} // namespace mi_pruner::cpu

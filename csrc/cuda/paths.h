// Which way a selection takes: by the longest sample alone, so that neither the batch nor `keep` decides.
#pragma once

#include <cstdint>

namespace mi_pruner::cuda {

// Up to here all cosines between visual tokens are computed beforehand (64 MB a sample at the most), and one block of
// 1024 threads holds 4 tokens each in registers. Beyond, rows of cosines are computed for the likely next picks. A
// sample's bits are the same on both ways.
constexpr int64_t kGramTokens = 4096;

constexpr bool takes_gram_path(int64_t longest) { return longest <= kGramTokens; }

} // namespace mi_pruner::cuda

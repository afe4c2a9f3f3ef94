// Which way a selection takes: by the longest sample and the GPU, so that neither the batch nor `keep` decides.
#pragma once

#include <cstdint>

namespace mi_pruner::cuda {

// Up to here the redundancies of all pairs of visual tokens are computed beforehand (64 MB a sample at the most), and a
// warp holds each 1,024 tokens in registers. Beyond, rows of log K are computed for the likely next picks. A sample's
// bits are the same on both ways.
constexpr int64_t kGramTokens = 4096;

// The blocks of a cluster: as many as every GPU with clusters can run.
constexpr int kClusterBlocks = 8;

// Tokens that a thread of the row path holds in registers: with 256 threads a block, a cluster holds 32,768. What they
// don't hold is kept in memory.
constexpr int kHeldTokens = 16;

// Up to here one warp holds a sample's tokens, and one makes a row of its redundancies.
constexpr int64_t kShortSample = 1024;

constexpr bool takes_gram_path(int64_t longest) { return longest <= kGramTokens; }

} // namespace mi_pruner::cuda

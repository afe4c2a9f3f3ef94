// What launches and kernels are told, and what they leave for one another. Free of Torch; memory belongs to the caller.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef MI_PRUNER_CUDA_HOST
#include "cuda_host.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace mi_pruner::cuda {

// Where launches go: a device, which is the current one, as far as their sizes depend on it, and a stream of it.
struct Target {
  int device;
  int processors;     // multiprocessors
  size_t most_shared; // bytes of shared memory that a block may have
  bool has_clusters;
  cudaStream_t stream;
};

enum class Dtype { kFloat16, kBFloat16, kFloat32 };
enum class Redundancy { kMean, kChain, kMax };

// Tiles of cosines: of a sample's rows with 64 columns or, of the Gram matrix of halves where the GPU multiplies by
// groups of warps, with 128. What text tiles leave for the bandwidth rule they leave for each kPatchRows rows, those
// that a block of a cluster sees to, and kPatchColumns columns, and rows for the prior for each kPatchRows. A row's
// part of a normaliser is that of each kTileColumns columns.
constexpr int kTileRows = 128, kTileColumns = 64, kWideColumns = 128, kPatchRows = 16, kPatchColumns = 32;

// How many tiles of kTileColumns columns lie side by side in one row of tiles. Of those of visual columns, none that
// lie wholly above the diagonal of the Gram matrix: the tile across it leaves them, turned.
constexpr int64_t tiles_across(int64_t text_tiles, int64_t visual_tiles, int64_t row_tile) {
  const int64_t below = (row_tile + 1) * (kTileRows / kTileColumns);
  return text_tiles + (below < visual_tiles ? below : visual_tiles);
}

// All of a sample of `row_tiles` rows of tiles: of the triangle, the last row may not be whole.
constexpr int64_t tiles_of_sample(int64_t text_tiles, int64_t visual_tiles, int64_t row_tiles) {
  const int64_t each = kTileRows / kTileColumns, triangle = each * row_tiles * (row_tiles + 1) / 2;
  return row_tiles * text_tiles + (visual_tiles == 0 ? 0 : triangle - (each * row_tiles - visual_tiles));
}

// Bytes of shared memory that a block may have on every GPU this is built for: compute capability 8.6, 8.9 and 12 have
// the least.
constexpr int kMostShared = 99 * 1024;

// Log Z of the text: the columns of a block, and its rows, for which 32,768 are 16 blocks. A sum over the rows is that
// over each of these chunks, and then over the chunks.
constexpr int kTextGroup = 4;
constexpr int64_t kChunkRows = 2048;

// Samples in an array of `total` entries: `longest` each, or packed as `given` (samples + 1), at most `longest` each.
// What is given may be anything: the similarities read it, and leave in `cu` what it comes to, for the kernels after
// them: clamped to [0, total], and non-decreasing.
struct Layout {
  const int32_t* given; // null: dense
  int64_t samples, total, longest;
  uint32_t* cu = nullptr; // (samples + 1)

  constexpr bool packed() const { return given != nullptr; }
};

// Visual or text tokens; strides in elements, `batch_stride` for dense ones only.
struct Tokens {
  Layout layout;
  const void* features;
  int64_t batch_stride, stride;
  bool aligned;       // every row starts at a multiple of 16 bytes, and near the one before (tensors.h)
  const float* prior; // (total), null: uniform
};

// Where a selection goes, in the order of the picks.
struct Picks {
  Layout slots;
  const int64_t* budget; // (samples), null: none
  float min_gain;        // -infinity: none
  int64_t* indices;      // (slots.total)
  float* gains;
  const int64_t* most_picks = nullptr; // (samples), null: no ratio
};

// The largest of some logarithms, and the sum of exp relative to it: a tile's share of a normaliser.
struct alignas(8) LogSum {
  float top, total;
};

// A patch's share of the sum of the visual prior, and how many of its tokens are valid.
struct PriorPart {
  LogSum sum;
  unsigned valid;
};

// Two floats that a block leaves for others of its launch, in one word: it is there once it is not kNotThere, two NaNs
// that no arithmetic gives.
constexpr uint64_t kNotThere = ~uint64_t{0};

// Where a sample's words begin: two of its own, then one for each of its text tokens, the first of which is token
// `begin` of all.
constexpr int kSampleTerms = 2;
constexpr int64_t first_term(int64_t sample, int64_t begin) { return kSampleTerms * sample + begin; }

// What the similarities leave for the kernels after them; N, M: total tokens.
struct Similarities {
  float* visual_log_weight; // (N) logs of the priors, not normalised; -infinity: absent
  float* text_log_weight;   // (M)
  float* cosines;           // (N, cosine_stride): visual token by the text tokens of its sample
  int64_t cosine_stride;
  float* moments;         // (samples, row_patches, text_patches, 3)
  PriorPart* prior_parts; // (samples, row_patches)
  // (N, gram_stride): the products of a visual token with those of its sample, of which the normalisers make R, a row
  // of a pick with all tokens; NaN with itself.
  float* gram;
  int64_t gram_stride;
  float* visual_norm; // (N); null: nobody asks for them
  unsigned* arrivals; // (samples, text_groups): 0, for the normalisers
  // (2 samples + M), where there is text: kNotThere, for the normalisers. A sample's: 1/h^2 of the cross-modal kernel
  // and the weight of the null word of the joint marginal, beside the valid text tokens; log_total and nothing. A text
  // token's: log Z and the normalised weight, 0: absent.
  uint64_t* terms;
  int64_t text_tiles, visual_tiles;  // of kTileColumns, side by side; visual_tiles = 0: no gram
  int64_t row_patches, text_patches; // of kPatchRows and kPatchColumns
  int64_t text_groups;               // of kTextGroup tokens
  float kappa;                       // 1/h^2 of the visual-visual kernel
};

// What the normalisers leave.
struct Densities {
  float* log_total;    // (samples) log of the sum of the visual prior
  float* log_prior;    // (N) normalised; -infinity: absent
  int64_t* most_picks; // (samples) what a ratio of the valid visual tokens allows; null: no ratio
  LogSum* text_parts;  // (M, chunks), of log Z of the text
  int64_t chunks;      // of a sample's rows
};

// Scores that the launch of the normalisers leaves; null: none are wanted.
struct Scoring {
  float* scores; // (N)
  bool joint;    // else the other marginal
};

// The row path, see greedy_on_rows.cuh: for each team a ring of generations, a product's rows each. So many bytes of
// rows in all (but four generations at the least), and no more than so many rows a pick: of a film of photographs 2.2
// to 5.6 are computed, of features of very few dimensions as many as there is time for. And no more than have a number.
constexpr int kProductRows = kTileColumns;
constexpr int64_t kRowBytes = int64_t{768} << 20, kLeastGenerations = 4, kRowsOfPick = 6;
constexpr unsigned kNoRow = 0xffff, kPicked = 0xfffe; // in place of the number of a token's row
constexpr int64_t kMostGenerations = kPicked / kProductRows;
constexpr int64_t kMostTeams = 8;

// A product that a team has on offer: the rows of the chosen tokens.
struct Order {
  int64_t sample;
  int base;                 // of the rows in the ring
  int parts;                // see row_products.cuh
  int chosen[kProductRows]; // tokens; -1: none
};

struct RowMemory {
  int64_t blocks, teams;
  bool clustered;                         // a cluster of blocks takes a team's steps, else one
  int64_t generations, row_stride, tiles; // of kTileColumns tokens, of a row
  float* rows;                            // (teams, cached, row_stride)
  float* log_z;                           // (teams, cached)
  LogSum* parts;                          // (teams, kProductRows, tiles)
  float* rho;                             // (N) while no thread holds it in registers
  uint16_t* slot; // (N) of the tokens that no registers hold: the number of a row, kNoRow or kPicked
  Order* orders;  // (teams)
  // 0 at the start (counter_count): of blocks or clusters that have a role, of teams that are over; of each team, its
  // products so far, parts of the last one that nobody has taken (negative: none), and that are done. Not in one line
  // of L2 what some look at while others count.
  unsigned* counters;

  constexpr int64_t cached() const { return generations * kProductRows; }
  static constexpr unsigned kLine = 32;
  constexpr int64_t counter_count() const { return kLine * (2 + 3 * teams); }
  constexpr unsigned* roles() const { return counters; }
  constexpr unsigned* over() const { return counters + kLine; }
  constexpr unsigned* offers(unsigned team) const { return counters + kLine * (2 + 3 * team); }
  constexpr unsigned* left(unsigned team) const { return offers(team) + kLine; }
  constexpr unsigned* done(unsigned team) const { return left(team) + kLine; }
};

struct Selection {
  float kappa; // 1/h^2 of the visual-visual kernel
  Redundancy redundancy;
  float weight;
};

} // namespace mi_pruner::cuda

// The arithmetic of the CPU backend, as a table of functions for each instruction set. Free of Torch.
//
// Every sum has an order of its own that depends on nothing but the length of what is summed: not on the tile, the
// position of a row, the number of threads or the batch. So equal rows get equal bits, and a sample's result is the
// same alone and in any batch. (A library's matrix product promises neither: see docs/findings.md.)
#pragma once

#include <cstdint>

namespace mi_pruner::cpu {

enum class Dtype { kFloat16, kBFloat16, kFloat32, kFloat64 };

// `count` rows of `dim` elements, consecutive rows `stride` elements apart.
struct Rows {
  const void* data;
  int64_t stride;
  int64_t count;
  int64_t dim;
  Dtype dtype;
};

// Arrays over tokens are padded to a multiple of this, so that loops run over whole vectors of every width.
constexpr int64_t kPad = 16;

constexpr int64_t padded(int64_t count) { return (count + kPad - 1) / kPad * kPad; }

// A panel: `count` rows as `pack` lays them out for `products`, and rows of zeros up to whole tiles of columns.
constexpr int kTileColumns = 4;

constexpr int64_t panel_rows(int64_t count) { return (count + kTileColumns - 1) / kTileColumns * kTileColumns; }

constexpr int64_t panel_size(int64_t count, int64_t dim) { return panel_rows(count) * padded(dim); }

// A sketch stands for the features where a guess will do: some groups of neighbouring coordinates of a token, scaled to
// a norm of kSketchNorm (or 0) and cut to integers, so that the inner product of two fits into int32.
constexpr int kGroupWidth = 8, kSketchGroups = 16, kSketchWidth = kSketchGroups * kGroupWidth;
constexpr int kSketchNorm = (1 << 15) - 1;

constexpr int kMaxBins = 64; // as mi_pruner/_checks.py: a bin fits into uint8, a cell into uint16

// The tokens of largest gain: `index` is -1 where no gain is above -infinity.
template <typename Acc> struct Best {
  Acc gain;
  int64_t index;
};

// Acc: float for features of up to 32 bits, double for float64. "padded" lengths are multiples of kPad.
template <typename Acc> struct Kernels {
  // square[i] = sum over d of rows[i][d]^2, for begin <= i < end.
  void (*squared_norms)(const Rows& rows, int64_t begin, int64_t end, Acc* square);

  // panel <- rows[chosen[j]] * scale[chosen[j]], for 0 <= j < count.
  void (*pack)(const Rows& rows, const int64_t* chosen, int64_t count, const Acc* scale, Acc* panel);

  // out[j][i] = <rows[i], panel[j]>, begin <= i < end, 0 <= j < count; and, where square is not null, squared_norms of
  // the same rows, which are at hand.
  void (*products)(const Rows& rows, int64_t begin, int64_t end, const Acc* panel, int64_t count, Acc* const* out,
                   Acc* square);

  // values[i] <- values[i] * factor[i], 0 where factor[i] is 0 (whatever values[i] is).
  void (*scale)(Acc* values, const Acc* factor, int64_t padded);

  Acc (*sum)(const Acc* values, int64_t padded);

  // Sum of (values[i] - mean)^2 where log_prior[i] is above -infinity.
  Acc (*squared_deviations)(const Acc* values, const Acc* log_prior, int64_t padded, Acc mean);

  // log sum over i of exp(log_prior[i] + (cosines[i] - 1) * kappa).
  Acc (*log_normaliser)(const Acc* cosines, const Acc* log_prior, int64_t padded, Acc kappa);

  // scores[i] for begin <= i < end (both padded), from cosines[j][i], the normalisers log_z[j] and the text weights
  // w[j], 0 <= j < count, of the valid text tokens.
  void (*scores)(const Acc* const* cosines, const Acc* log_z, const Acc* weight, int64_t count, const Acc* log_prior,
                 Acc kappa, bool joint, int64_t begin, int64_t end, Acc* scores);

  // row <- weight * pi_i r[i,s] l[i,s] for all i, from the cosines with s that it holds.
  void (*redundancies)(Acc* row, const Acc* log_prior, int64_t padded, Acc kappa, Acc weight);

  // One greedy step: rho <- rho + row, or max(rho, row); gains <- scores - scale * rho; the best, lowest index first.
  // Tokens that can't be picked have a NaN score. row may be null: rho stays.
  Best<Acc> (*step)(const Acc* scores, Acc* rho, const Acc* row, bool maximum, Acc scale, int64_t padded, Acc* gains);

  // energy[g] <- sum over 0 <= j < count and the coordinates of group g of (rows[chosen[j]] * scale[chosen[j]])^2, for
  // the dim / kGroupWidth whole groups.
  void (*energies)(const Rows& rows, const int64_t* chosen, int64_t count, const Acc* scale, Acc* energy);

  // sketch[i] <- groups group[g] of rows[i], 0 <= g < count (at most kSketchGroups), times weight[g], for begin <= i <
  // end; zeros where scale[i], by which a row is multiplied first, is 0.
  void (*sketch)(const Rows& rows, int64_t begin, int64_t end, const Acc* scale, const int64_t* group,
                 const Acc* weight, int count, int16_t* sketch);

  // cosines[i] <- that of sketch[i] and `of`.
  void (*sketched_cosines)(const int16_t* sketch, const int16_t* of, int64_t padded, Acc* cosines);

  // bin[d] of the coordinates of a row that is finite: see docs/maths.md, "The histogram estimator".
  void (*bin_row)(const Rows& rows, int64_t i, int bins, uint8_t* bin);

  // Sum of terms[count] over the cells of the bins x bins histogram of (x[d], y[d]); terms[0] is 0. The order of the
  // sum is such that a constant x leaves the bits of (y, y), and a constant y those of (x, x).
  Acc (*sum_over_cells)(const uint8_t* x, const uint8_t* y, int64_t dim, int bins, const Acc* terms);
};

// The table for the widest instruction set that this processor has.
template <typename Acc> const Kernels<Acc>& kernels();

} // namespace mi_pruner::cpu

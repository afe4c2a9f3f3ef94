// Compiled once per instruction set, MI_PRUNER_ISA naming it; see kernels.h for what each function computes.
#include "cpu/kernels.h"

#include <cmath>
#include <limits>
#include <new>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace mi_pruner::cpu {
namespace MI_PRUNER_ISA {

#include "cpu/simd.h"

namespace {

// Columns of the features worked on at a time: see kRowsHeld.
constexpr int64_t kChunk = 256;

// Element types.

struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

inline float bits_to_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(Brain x) { return bits_to_float(uint32_t{x.bits} << 16); }

inline float widen(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = uint32_t(x.bits & 0x7fff) << 13;
  if (magnitude >= 0x0f800000) return bits_to_float(sign | 0x7f800000 | magnitude); // infinity or NaN
  const float value = bits_to_float(magnitude) * 0x1p112f;                          // from a bias of 15 to one of 127
  return sign ? -value : value;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

// to[0 .. padded(count)) <- from[0 .. count), 0 after.
template <typename T, typename Acc> void widen_row(const T* from, int64_t count, Acc* to) {
  int64_t i = 0;
#if defined(__F16C__) // float16, N = 576: 1.2 times the speed of what the compiler makes of the loop below
  if constexpr (__is_same(T, Half))
    for (; i + 8 <= count; i += 8)
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
  for (; i < count; ++i)
    to[i] = widen(from[i]);
  for (; i < padded(count); ++i)
    to[i] = 0;
}

constexpr int64_t chunk_columns(int64_t dim, int64_t from) { return dim - from < kChunk ? dim - from : kChunk; }

constexpr int64_t chunk_length(int64_t dim, int64_t from) { return padded(chunk_columns(dim, from)); }

// Columns [from, from + kChunk) of a row, as Acc and padded by zeros: the row itself where it is that already.
template <typename T, typename Acc> const Acc* chunk(const T* row, int64_t dim, int64_t from, Acc* scratch) {
  const int64_t count = chunk_columns(dim, from);
  if constexpr (__is_same(T, Acc))
    if (count % kPad == 0) return row + from;
  widen_row(row + from, count, scratch);
  return scratch;
}

// Norms and products.

// A row's squares, in four vectors of partial sums: the additions of one would wait for each other.
template <typename Acc> struct Squares {
  Vec<Acc> total[4] = {};

  void add(const Acc* x, int64_t length) {
    for (int64_t d = 0; d < length; d += kLanes<Acc>) {
      const Vec<Acc> v = load(x + d);
      total[d / kLanes<Acc> % 4] += v * v;
    }
  }
  Acc sum() const { return lane_sum<Acc>((total[0] + total[1]) + (total[2] + total[3])); }
};

template <typename T, typename Acc> void squared_norms_of(const Rows& rows, int64_t begin, int64_t end, Acc* square) {
  alignas(64) Acc scratch[kChunk];
  for (int64_t i = begin; i < end; ++i) {
    const T* row = static_cast<const T*>(rows.data) + i * rows.stride;
    Squares<Acc> squares;
    for (int64_t from = 0; from < rows.dim; from += kChunk)
      squares.add(chunk<T, Acc>(row, rows.dim, from, scratch), chunk_length(rows.dim, from));
    square[i] = squares.sum();
  }
}

// A panel is laid out by chunks of columns, then by rows: what one pass over a chunk reads is contiguous.
template <typename T, typename Acc>
void pack_of(const Rows& rows, const int64_t* chosen, int64_t count, const Acc* scale, Acc* panel) {
  alignas(64) Acc scratch[kChunk];
  for (int64_t from = 0; from < rows.dim; from += kChunk) {
    const int64_t length = chunk_length(rows.dim, from);
    for (int64_t j = 0; j < panel_rows(count); ++j, panel += length) {
      if (j < count) {
        const T* row = static_cast<const T*>(rows.data) + chosen[j] * rows.stride;
        const Acc* x = chunk<T, Acc>(row, rows.dim, from, scratch);
        for (int64_t d = 0; d < length; ++d)
          panel[d] = x[d] * scale[chosen[j]];
      } else {
        for (int64_t d = 0; d < length; ++d)
          panel[d] = 0;
      }
    }
  }
}

// total[r][c] += x[r] * panel[c] over one chunk of columns: lanes hold every kLanes-th column.
template <typename Acc>
inline void multiply_tile(const Acc* x, const Acc* panel, int64_t length, Vec<Acc>* total, int64_t stride) {
  Vec<Acc> sum[kTileRows][kTileColumns];
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < kTileColumns; ++c)
      sum[r][c] = total[r * stride + c];
  for (int64_t d = 0; d < length; d += kLanes<Acc>) {
    Vec<Acc> a[kTileRows];
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r)
      a[r] = load(x + r * kChunk + d);
#pragma GCC unroll 8
    for (int c = 0; c < kTileColumns; ++c) {
      const Vec<Acc> b = load(panel + c * length + d);
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r)
        sum[r][c] += a[r] * b;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < kTileColumns; ++c)
      total[r * stride + c] = sum[r][c];
}

// Rows and columns of the panel worked on at a time. Their sums, 48 x 64 vectors, and a chunk of the panel, which is
// read once for all of them, stay in the second-level cache; a chunk of kRowsAtOnce rows and a tile's columns of the
// panel in the first. Rows are copied there: at a distance of 16 KB, where they lie, 12 of them fall into the same few
// sets.
constexpr int64_t kRowsHeld = 48, kRowsAtOnce = 12, kColumnsAtOnce = 64;
static_assert(kRowsHeld % kRowsAtOnce == 0 && kRowsAtOnce % kTileRows == 0);

// Into the second-level cache. Without: 1.3 times the time at N = 2880 (AVX2).
template <typename T> inline void prefetch(const T* from, int64_t count) {
  for (int64_t d = 0; d < count; d += 64 / int64_t{sizeof(T)})
    __builtin_prefetch(from + d, 0, 2);
}

template <typename Acc> using Sums = Vec<Acc>[kRowsHeld][kColumnsAtOnce];

// Up to kRowsHeld rows from `first` (the last one stands in for those that a tile lacks) with `count` rows of the
// panel.
template <typename T, typename Acc>
void products_of_rows(const Rows& rows, int64_t first, int64_t end, const Acc* panel, int64_t rows_of_panel,
                      int64_t column, int64_t count, Sums<Acc>& total, Acc* const* out, Acc* square) {
  alignas(64) Acc x[kRowsAtOnce][kChunk];
  Squares<Acc> squares[kRowsHeld];
  const int64_t here = end - first < kRowsHeld ? end - first : kRowsHeld;
  const int64_t held = (here + kTileRows - 1) / kTileRows * kTileRows;
  const auto row = [&](int64_t r) {
    return static_cast<const T*>(rows.data) + (first + (r < here ? r : here - 1)) * rows.stride;
  };
  for (int64_t r = 0; r < held; ++r)
    for (int64_t c = 0; c < panel_rows(count); ++c)
      total[r][c] = Vec<Acc>{};
  for (int64_t from = 0; from < rows.dim; from += kChunk) {
    const int64_t length = chunk_length(rows.dim, from);
    for (int64_t begin = 0; begin < held; begin += kRowsAtOnce) {
      const int64_t some = held - begin < kRowsAtOnce ? held - begin : kRowsAtOnce;
      for (int64_t r = 0; r < some; ++r) {
        widen_row(row(begin + r) + from, chunk_columns(rows.dim, from), x[r]);
        if (square != nullptr) squares[begin + r].add(x[r], length);
      }
      const bool more = begin + kRowsAtOnce < held; // rows of this chunk come next, else the first ones' next chunk
      const int64_t then = more ? begin + kRowsAtOnce : 0, at = more ? from : from + kChunk;
      int64_t fetched = 0; // of these rows: as many to each tile of columns
      for (int64_t c = 0; c < count; c += kTileColumns) {
        for (; at < rows.dim && fetched < some * (c + kTileColumns) / panel_rows(count); ++fetched)
          prefetch(row(then + fetched) + at, chunk_columns(rows.dim, at));
        for (int64_t r = 0; r < some; r += kTileRows)
          multiply_tile<Acc>(x[r], panel + (column + c) * length, length, &total[begin + r][c], kColumnsAtOnce);
      }
    }
    panel += rows_of_panel * length;
  }
  for (int64_t r = 0; r < here; ++r) {
    for (int64_t c = 0; c < count; ++c)
      out[column + c][first + r] = lane_sum<Acc>(total[r][c]);
    if (square != nullptr) square[first + r] = squares[r].sum();
  }
}

template <typename T, typename Acc>
void products_of(const Rows& rows, int64_t begin, int64_t end, const Acc* panel, int64_t count, Acc* const* out,
                 Acc* square) {
  constexpr std::align_val_t kAlignment{64};
  auto* total = static_cast<Sums<Acc>*>(::operator new(sizeof(Sums<Acc>), kAlignment)); // too large for some stacks
  for (int64_t column = 0; column < count; column += kColumnsAtOnce) {
    const int64_t columns = count - column < kColumnsAtOnce ? count - column : kColumnsAtOnce;
    for (int64_t i = begin; i < end; i += kRowsHeld)
      products_of_rows<T, Acc>(rows, i, end, panel, panel_rows(count), column, columns, *total, out,
                               column == 0 ? square : nullptr);
  }
  ::operator delete(total, kAlignment);
}

template <typename Acc> void scale(Acc* values, const Acc* factor, int64_t padded) {
  for (int64_t i = 0; i < padded; i += kLanes<Acc>) {
    const Vec<Acc> f = load(factor + i);
    store(values + i, f == 0 ? Vec<Acc>{} : load(values + i) * f);
  }
}

// Densities.

template <typename Acc> Acc sum(const Acc* values, int64_t padded) {
  Vec<Acc> total{};
  for (int64_t i = 0; i < padded; i += kLanes<Acc>)
    total += load(values + i);
  return lane_sum<Acc>(total);
}

template <typename Acc> Acc squared_deviations(const Acc* values, const Acc* log_prior, int64_t padded, Acc mean) {
  Vec<Acc> total{};
  for (int64_t i = 0; i < padded; i += kLanes<Acc>) {
    const Vec<Acc> deviation = load(values + i) - mean;
    total += load(log_prior + i) > -std::numeric_limits<Acc>::infinity() ? deviation * deviation : Vec<Acc>{};
  }
  return lane_sum<Acc>(total);
}

template <typename Acc> Acc log_normaliser(const Acc* cosines, const Acc* log_prior, int64_t padded, Acc kappa) {
  Vec<Acc> highest = splat<Acc>(-std::numeric_limits<Acc>::infinity());
  for (int64_t i = 0; i < padded; i += kLanes<Acc>)
    highest = max<Acc>(highest, (load(cosines + i) - 1) * kappa + load(log_prior + i));
  const Acc shift = lane_max<Acc>(highest);
  Vec<Acc> total{};
  for (int64_t i = 0; i < padded; i += kLanes<Acc>)
    total += exp<Acc>((load(cosines + i) - 1) * kappa + load(log_prior + i) - shift);
  return shift + std::log(lane_sum<Acc>(total));
}

template <typename Acc> inline Vec<Acc> log_of(Vec<Acc> v) {
  for (int lane = 0; lane < kLanes<Acc>; ++lane)
    v[lane] = std::log(v[lane]);
  return v;
}

// With l_j = (cosine - 1) kappa - log Z_j, top = max_j l_j, e_j = exp(l_j - top), s = sum w e and d = sum w e (l -
// top):
//   prior: pi sum w r l = pi e^top (d + s top)
//   joint: the null word, of weight 1 / (count + 1), takes part in top with l = 0, and in the mixture
//          q' = e^top m, m = s + (e^-top - s) / (count + 1); of the words' share,
//          pi (sum w' r l - (q' - w'_0) log q') = pi e^top (d - s log m) count / (count + 1)
// Relative to top the terms cancel before they are rounded.
template <typename Acc>
void scores(const Acc* const* cosines, const Acc* log_z, const Acc* weight, int64_t count, const Acc* log_prior,
            Acc kappa, bool joint, int64_t begin, int64_t end, Acc* scores) {
  const Acc null_weight = 1 / static_cast<Acc>(count + 1);
  for (int64_t i = begin; i < end; i += kLanes<Acc>) {
    Vec<Acc> top = splat<Acc>(joint ? Acc(0) : -std::numeric_limits<Acc>::infinity());
    for (int64_t j = 0; j < count; ++j)
      top = max<Acc>(top, (load(cosines[j] + i) - 1) * kappa - log_z[j]);
    Vec<Acc> s{}, d{};
    for (int64_t j = 0; j < count; ++j) {
      const Vec<Acc> below = ((load(cosines[j] + i) - 1) * kappa - log_z[j]) - top;
      const Vec<Acc> term = weight[j] * exp<Acc>(below);
      s += term;
      d += term * below;
    }
    const Vec<Acc> conditional = exp<Acc>(top + load(log_prior + i)); // pi e^top, at most about 1
    if (joint) {
      const Vec<Acc> mixture = s + null_weight * (exp<Acc>(-top) - s);
      const Vec<Acc> shared = s > 0 ? s * log_of<Acc>(mixture) : Vec<Acc>{}; // 0 log 0 = 0
      store(scores + i, conditional * ((1 - null_weight) * (d - shared)));
    } else {
      store(scores + i, conditional * (d + s * top));
    }
  }
}

template <typename Acc> void redundancies(Acc* row, const Acc* log_prior, int64_t padded, Acc kappa, Acc weight) {
  const Acc log_z = log_normaliser(row, log_prior, padded, kappa);
  for (int64_t i = 0; i < padded; i += kLanes<Acc>) {
    const Vec<Acc> log_r = (load(row + i) - 1) * kappa - log_z;
    store(row + i, weight * exp<Acc>(log_r + load(log_prior + i)) * log_r);
  }
}

// Sketches.

template <typename T, typename Acc>
void energies_of(const Rows& rows, const int64_t* chosen, int64_t count, const Acc* scale, Acc* energy) {
  const int64_t groups = rows.dim / kGroupWidth;
  for (int64_t g = 0; g < groups; ++g)
    energy[g] = 0;
  for (int64_t j = 0; j < count; ++j) {
    const T* row = static_cast<const T*>(rows.data) + chosen[j] * rows.stride;
    const Acc factor = scale[chosen[j]];
    for (int64_t g = 0; g < groups; ++g)
      for (int d = 0; d < kGroupWidth; ++d) {
        const Acc x = widen(row[g * kGroupWidth + d]) * factor;
        energy[g] += x * x;
      }
  }
}

template <typename T, typename Acc>
void sketch_of(const Rows& rows, int64_t begin, int64_t end, const Acc* scale, const int64_t* group, const Acc* weight,
               int count, int16_t* sketch) {
  for (int64_t i = begin; i < end; ++i) {
    const T* row = static_cast<const T*>(rows.data) + i * rows.stride;
    alignas(64) Acc x[kSketchWidth] = {};
    for (int g = 0; g < count && scale[i] != 0; ++g)
      for (int d = 0; d < kGroupWidth; ++d)
        x[g * kGroupWidth + d] = widen(row[group[g] * kGroupWidth + d]) * (scale[i] * weight[g]);
    Squares<Acc> squares;
    squares.add(x, kSketchWidth);
    const Acc square = squares.sum();
    const bool usable = square > std::numeric_limits<Acc>::min() && square <= std::numeric_limits<Acc>::max();
    const Acc factor = usable ? kSketchNorm / std::sqrt(square) : Acc(0);
    for (int w = 0; w < kSketchWidth; ++w)
      sketch[i * kSketchWidth + w] = usable ? static_cast<int16_t>(x[w] * factor) : int16_t{0};
  }
}

template <typename Acc> void sketched_cosines(const int16_t* sketch, const int16_t* of, int64_t padded, Acc* cosines) {
  constexpr Acc kUnit = Acc(1) / (Acc(kSketchNorm) * kSketchNorm);
  for (int64_t i = 0; i < padded; ++i) {
    int32_t product = 0; // compilers know this loop: two products and their sum an instruction
    for (int w = 0; w < kSketchWidth; ++w)
      product += sketch[i * kSketchWidth + w] * of[w];
    cosines[i] = static_cast<Acc>(product) * kUnit;
  }
}

// The greedy step.

template <typename Acc>
Best<Acc> step(const Acc* scores, Acc* rho, const Acc* row, bool maximum, Acc scale, int64_t padded, Acc* gains) {
  using Index = Bits<Acc>;
  Vec<Acc> best = splat<Acc>(-std::numeric_limits<Acc>::infinity());
  Index index{}, where = Index{} - 1;
  for (int lane = 0; lane < kLanes<Acc>; ++lane)
    index[lane] = lane;
  for (int64_t i = 0; i < padded; i += kLanes<Acc>, index += kLanes<Acc>) {
    Vec<Acc> redundancy = load(rho + i);
    if (row != nullptr) {
      const Vec<Acc> r = load(row + i);
      redundancy = maximum ? max<Acc>(redundancy, r) : redundancy + r;
      store(rho + i, redundancy);
    }
    const Vec<Acc> gain = load(scores + i) - scale * redundancy;
    store(gains + i, gain);
    const Index better = gain > best; // false for NaN, and for an equal gain at a higher index
    best = better ? gain : best;
    where = better ? index : where;
  }
  Best<Acc> result{best[0], where[0]};
  for (int lane = 1; lane < kLanes<Acc>; ++lane)
    if (where[lane] >= 0 &&
        (best[lane] > result.gain || result.index < 0 || (best[lane] == result.gain && where[lane] < result.index)))
      result = {best[lane], where[lane]};
  return result;
}

#include "cpu/counting.h"

// One function per feature dtype.

#define MI_PRUNER_BY_DTYPE(rows, call)                                                                                 \
  if constexpr (__is_same(Acc, double)) {                                                                              \
    using T = double;                                                                                                  \
    call;                                                                                                              \
  } else if (rows.dtype == Dtype::kFloat32) {                                                                          \
    using T = float;                                                                                                   \
    call;                                                                                                              \
  } else if (rows.dtype == Dtype::kBFloat16) {                                                                         \
    using T = Brain;                                                                                                   \
    call;                                                                                                              \
  } else {                                                                                                             \
    using T = Half;                                                                                                    \
    call;                                                                                                              \
  }

template <typename Acc> void squared_norms(const Rows& rows, int64_t begin, int64_t end, Acc* square) {
  MI_PRUNER_BY_DTYPE(rows, (squared_norms_of<T, Acc>(rows, begin, end, square)))
}

template <typename Acc>
void pack(const Rows& rows, const int64_t* chosen, int64_t count, const Acc* scale, Acc* panel) {
  MI_PRUNER_BY_DTYPE(rows, (pack_of<T, Acc>(rows, chosen, count, scale, panel)))
}

template <typename Acc>
void products(const Rows& rows, int64_t begin, int64_t end, const Acc* panel, int64_t count, Acc* const* out,
              Acc* square) {
  MI_PRUNER_BY_DTYPE(rows, (products_of<T, Acc>(rows, begin, end, panel, count, out, square)))
}

template <typename Acc>
void energies(const Rows& rows, const int64_t* chosen, int64_t count, const Acc* scale, Acc* energy) {
  MI_PRUNER_BY_DTYPE(rows, (energies_of<T, Acc>(rows, chosen, count, scale, energy)))
}

template <typename Acc>
void sketch(const Rows& rows, int64_t begin, int64_t end, const Acc* scale, const int64_t* group, const Acc* weight,
            int count, int16_t* sketch) {
  MI_PRUNER_BY_DTYPE(rows, (sketch_of<T, Acc>(rows, begin, end, scale, group, weight, count, sketch)))
}

template <typename Acc> void bin_row(const Rows& rows, int64_t i, int bins, uint8_t* bin) {
  MI_PRUNER_BY_DTYPE(rows, (bin_row_of<T>(rows, i, bins, bin)))
}

template <typename Acc>
constexpr Kernels<Acc> kTable = {
    squared_norms<Acc>,      pack<Acc>,           products<Acc>,         scale<Acc>,        sum<Acc>,
    squared_deviations<Acc>, log_normaliser<Acc>, scores<Acc>,           redundancies<Acc>, step<Acc>,
    energies<Acc>,           sketch<Acc>,         sketched_cosines<Acc>, bin_row<Acc>,      sum_over_cells<Acc>,
};

} // namespace

extern const Kernels<float> kFloat;
extern const Kernels<double> kDouble;
const Kernels<float> kFloat = kTable<float>;
const Kernels<double> kDouble = kTable<double>;

} // namespace MI_PRUNER_ISA
} // namespace mi_pruner::cpu

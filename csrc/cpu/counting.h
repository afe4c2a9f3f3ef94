// The histogram estimator's arithmetic. Included by kernels.cpp alone, inside its namespace of the instruction set.

// The extremes of a row, in float32; a row of the features is finite where this is called.
struct Range {
  Vec<float> low = splat<float>(std::numeric_limits<float>::infinity()), high = -low;

  void add(const float* x, int64_t count) {
    int64_t d = 0;
    for (; d + kLanes<float> <= count; d += kLanes<float>) {
      low = -max<float>(-low, -load(x + d));
      high = max<float>(high, load(x + d));
    }
    for (; d < count; ++d) {
      low[0] = x[d] < low[0] ? x[d] : low[0];
      high[0] = x[d] > high[0] ? x[d] : high[0];
    }
  }
};

template <typename T> void bin_row_of(const Rows& rows, int64_t i, int bins, uint8_t* to) {
  alignas(64) float scratch[kChunk];
  const T* row = static_cast<const T*>(rows.data) + i * rows.stride;
  Range range;
  for (int64_t from = 0; from < rows.dim; from += kChunk)
    range.add(chunk<T, float>(row, rows.dim, from, scratch), chunk_columns(rows.dim, from));
  const float low = -lane_max<float>(-range.low), high = lane_max<float>(range.high);
  const float scale = static_cast<float>(bins) / (high - low);
  if (!(scale > 0 && scale < std::numeric_limits<float>::infinity())) {
    __builtin_memset(to, 0, static_cast<size_t>(rows.dim));
    return;
  }
  for (int64_t from = 0; from < rows.dim; from += kChunk) {
    const float* x = chunk<T, float>(row, rows.dim, from, scratch);
    for (int64_t d = 0; d < chunk_columns(rows.dim, from); ++d) {
      const int32_t bin = static_cast<int32_t>((x[d] - low) * scale);
      to[from + d] = static_cast<uint8_t>(bin < bins - 1 ? bin : bins - 1);
    }
  }
}

// Copies of the counters, so that an increment need not wait for the one before it where both meet one cell, as most do
// where an outlier leaves most coordinates in one bin.
constexpr int kTables = 4;

template <typename Acc>
Acc sum_over_cells(const uint8_t* x, const uint8_t* y, int64_t dim, int bins, const Acc* terms) {
  uint32_t counts[kTables * kMaxBins * kMaxBins];
  uint16_t cell[kChunk];
  const int cells = bins * bins;
  __builtin_memset(counts, 0, sizeof(uint32_t) * static_cast<size_t>(kTables * cells));
  for (int64_t from = 0; from < dim; from += kChunk) {
    const int64_t length = chunk_columns(dim, from);
    for (int64_t d = 0; d < length; ++d)
      cell[d] = static_cast<uint16_t>(x[from + d] * bins + y[from + d]);
    int64_t d = 0;
    for (; d + kTables <= length; d += kTables)
#pragma GCC unroll 4
      for (int t = 0; t < kTables; ++t)
        ++counts[t * cells + cell[d + t]];
    for (; d < length; ++d)
      ++counts[cell[d]];
  }
  for (int t = 1; t < kTables; ++t)
    for (int c = 0; c < cells; ++c)
      counts[c] += counts[t * cells + c];
  Acc total = 0;
  for (int a = 0; a < bins; ++a) { // the sums of rows don't wait for one another
    Acc row = 0;
    for (int b = 0; b < bins; ++b)
      row += terms[counts[a * bins + b]];
    total += row;
  }
  return total;
}

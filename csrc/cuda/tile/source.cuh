// From where a tile's features are copied, stage by stage.
#pragma once

#include "cuda/tile/layout.cuh"

namespace mi_pruner::cuda {

// Where the tokens of a tile are, columns last: for all threads in shared memory (null: none), a thread's own in
// registers. In the place of a token that is not there a stage has anything: its cosines mean nothing.
template <typename T, int kRows = kTileRows> struct TileSource {
  static constexpr int kCopies = (kRows + kTileColumns) * kPieces / kTileThreads;
  static constexpr int kApart = kTileThreads / kPieces; // rows
  static constexpr int kElements = 16 / sizeof(T), kDepth = kPieces * kElements;
  static_assert(kApart % 8 == 0); // a thread's pieces have one place in their rows
  const T* const* token;
  // The next stage's piece threadIdx % 8 of rows threadIdx / 8 + kApart k, in pieces after that of the first row or
  // column: not as addresses, which would take twice the registers.
  static constexpr int kRowCopies = kRows / kApart;
  const T *row, *column;
  int after[kCopies];
  int place;            // of the first piece, in a stage
  unsigned present = 0; // a bit each
  bool aligned;

  static __host__ __device__ int stages(int64_t dim) { return static_cast<int>((dim + kDepth - 1) / kDepth); }

  // row_token(r), column_token(c): a token's number, -1 for none. Stages from `first_stage` on.
  template <typename RowToken, typename ColumnToken>
  __device__ TileSource(const Rows<T>& rows, const RowToken& row_token, const Rows<T>& columns,
                        const ColumnToken& column_token, int first_stage, TileShared<kRows>& shared)
      : token(reinterpret_cast<const T* const*>(shared.token)), aligned(rows.aligned && columns.aligned) {
    for (int r = threadIdx.x; r < kRows + kTileColumns; r += blockDim.x) {
      const bool row = r < kRows;
      const int64_t number = row ? row_token(r) : column_token(r - kRows);
      const T* const features = row ? rows.base + number * rows.stride : columns.base + number * columns.stride;
      shared.token[r] = number < 0 ? nullptr : features;
    }
    __syncthreads();
    const auto start = [&](int from, int to, const T*& first) {
      first = nullptr; // of those that are there
#pragma unroll
      for (int k = from; k < to; ++k) {
        const T* const features = token[threadIdx.x / kPieces + k * kApart];
        after[k] = 0;
        if (features == nullptr) continue;
        if (first == nullptr) first = features;
        after[k] = static_cast<int>((features - first) / kElements);
        present |= 1u << k;
      }
      if (first == nullptr) first = rows.base;
      first += threadIdx.x % kPieces * kElements + int64_t{first_stage} * kDepth;
    };
    start(0, kRowCopies, row);
    start(kRowCopies, kCopies, column);
    place = piece_offset(threadIdx.x / kPieces, threadIdx.x % kPieces);
    keep(place);
  }

  // A part, of kParts, of the next stage, of kDepth elements of aligned rows.
  __device__ void copy_part(unsigned char* stage, int part) {
    const SharedAddress to = shared_address(stage) + place;
#pragma unroll
    for (int k = 0; k < kCopies; ++k)
      if (k * kParts / kCopies == part && (present >> k & 1) != 0)
        copy_async(to + k * kApart * kStageRow, (k < kRowCopies ? row : column) + int64_t{after[k]} * kElements);
    if (part < kParts - 1) return;
    row += kDepth;
    column += kDepth;
  }

  // Any stage: the elements from `depth` on, and zeros from `dim` on.
  __device__ void copy(unsigned char* stage, int64_t depth, int64_t dim) const {
    const int piece = threadIdx.x % kPieces;
    const int64_t from = depth + piece * kElements, left = dim - from;
    const int count = left <= 0 ? 0 : left < kElements ? static_cast<int>(left) : kElements;
#pragma unroll 1
    for (int r = threadIdx.x / kPieces; r < kRows + kTileColumns; r += kApart) {
      unsigned char* to = stage + piece_offset(r, piece);
      const T* const features = token[r];
      if (features == nullptr) continue;
      if (count == kElements && aligned) {
        copy_async(shared_address(to), features + from);
      } else {
#pragma unroll 1
        for (int e = 0; e < kElements; ++e)
          reinterpret_cast<T*>(to)[e] = e < count ? features[from + e] : T{};
      }
    }
  }
};

} // namespace mi_pruner::cuda

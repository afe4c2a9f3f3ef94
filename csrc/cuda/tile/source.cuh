// From where a tile's features are copied, stage by stage.
#pragma once

#include "cuda/tile/layout.cuh"

namespace mi_pruner::cuda {

// Where the tokens of a tile are, columns last: for all threads in shared memory (null: none), a thread's own in
// registers. In the place of a token that is not there a stage has anything: its cosines mean nothing.
template <typename T, typename Tile> struct TileSource {
  static constexpr int kCopies = Tile::kTokens * kPieces / kTileThreads;
  static constexpr int kApart = kTileThreads / kPieces; // rows
  static constexpr int kElements = 16 / sizeof(T);
  static_assert(kApart % 8 == 0); // a thread's pieces have one place in their rows
  const T* const* token;
  // The next stage's piece threadIdx % 8 of rows and columns threadIdx / 8 + kApart k: those of the first that is
  // there, and how far after it the others are. Of neighbours a number of bytes is enough; of columns that are not, so
  // many pieces each (addresses would take twice the registers), and of rows where there are registers for it: that is
  // sooner done.
  static constexpr int kRowCopies = Tile::kRows / kApart, kColumnCopies = kCopies - kRowCopies;
  static constexpr bool kRowsApart = Tile::kBlocks == 1 && !Tile::kWide, kColumnsApart = Tile::kGathered;
  const T *row, *column;
  unsigned row_step, column_step;
  int after_row[kRowCopies], after_column[kColumnCopies];
  int place;            // of the first piece, in a stage
  unsigned present = 0; // a bit each
  bool aligned;

  // row_token(r), column_token(c): a token's number, -1 for none. Stages from `first_stage` on.
  template <typename RowToken, typename ColumnToken>
  __device__ TileSource(const Rows<T>& rows, const RowToken& row_token, const Rows<T>& columns,
                        const ColumnToken& column_token, int first_stage, TileShared<Tile>& shared)
      : token(reinterpret_cast<const T* const*>(shared.token)), aligned(rows.aligned && columns.aligned) {
    const auto number_of = [&](int r) { return r < Tile::kRows ? row_token(r) : column_token(r - Tile::kRows); };
    const auto features_of = [&](int r, int64_t number) {
      return r < Tile::kRows ? rows.base + number * rows.stride : columns.base + number * columns.stride;
    };
    for (int r = threadIdx.x; r < Tile::kTokens; r += blockDim.x) {
      const int64_t number = number_of(r);
      shared.token[r] = number < 0 ? nullptr : features_of(r, number);
    }
    const int own = threadIdx.x / kPieces;
    if constexpr (kRowsApart || kColumnsApart) __syncthreads();
    start<kRowsApart>(0, own, number_of, features_of, row, after_row);
    start<kColumnsApart>(kRowCopies, own, number_of, features_of, column, after_column);
    const int64_t piece = threadIdx.x % kPieces * kElements + int64_t{first_stage} * kDepth<T>;
    row = (row == nullptr ? rows.base : row) + piece;
    column = (column == nullptr ? rows.base : column) + piece;
    row_step = static_cast<unsigned>(kApart * rows.stride * int64_t{sizeof(T)});
    column_step = static_cast<unsigned>(kApart * columns.stride * int64_t{sizeof(T)});
    place = piece_offset(own, threadIdx.x % kPieces);
    keep(place);
  }

  // The copies for one step, of kSteps, of the next stage, of aligned rows.
  __device__ void copy_step(unsigned char* stage, int step) {
    const SharedAddress to = shared_address(stage) + place;
#pragma unroll
    for (int k = 0; k < kCopies; ++k)
      if (k * kSteps / kCopies == step && (present >> k & 1) != 0) copy_async(to + k * kApart * kStageRow, next(k));
    if (step < kSteps - 1) return;
    row += kDepth<T>;
    column += kDepth<T>;
  }

  __device__ const void* next(int k) const {
    if (k < kRowCopies) return next<kRowsApart>(row, k, row_step, after_row);
    return next<kColumnsApart>(column, k - kRowCopies, column_step, after_column);
  }

  // Any stage: the elements from `depth` on, and zeros from `dim` on.
  __device__ void copy(unsigned char* stage, int64_t depth, int64_t dim) const {
    const int piece = threadIdx.x % kPieces;
    const int64_t from = depth + piece * kElements, left = dim - from;
    const int count = left <= 0 ? 0 : left < kElements ? static_cast<int>(left) : kElements;
#pragma unroll 1
    for (int r = threadIdx.x / kPieces; r < Tile::kTokens; r += kApart) {
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

private:
  // The tokens `from` and following: of neighbours, where the first is not there, none is.
  template <bool kApartFromFirst, int kNumber, typename Number, typename Features>
  __device__ void start(int from, int own, const Number& number_of, const Features& features_of, const T*& first,
                        int (&after)[kNumber]) {
    first = nullptr;
#pragma unroll
    for (int k = 0; k < kNumber; ++k) {
      if constexpr (kApartFromFirst) {
        const T* const features = token[own + (from + k) * kApart];
        after[k] = 0;
        if (features == nullptr) continue;
        if (first == nullptr) first = features;
        after[k] = static_cast<int>((features - first) / kElements);
        present |= 1u << (from + k);
      } else if (number_of(own + (from + k) * kApart) >= 0) {
        present |= 1u << (from + k);
        if (k == 0) first = features_of(own + from * kApart, number_of(own + from * kApart));
      }
    }
  }

  template <bool kApartFromFirst, int kNumber>
  static __device__ const void* next(const T* first, int k, unsigned step, const int (&after)[kNumber]) {
    if constexpr (kApartFromFirst) return first + int64_t{after[k]} * kElements;
    return at_multiple(first, k, step);
  }
};

} // namespace mi_pruner::cuda

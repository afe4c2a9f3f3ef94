// What the instructions of ptx.cuh do to memory: cp.async; mbarrier; ldmatrix and mma, in the layouts of the PTX
// manual, lane by lane. Apart from the harness, as the address sanitizer is to see it.
#include "fibers.h"

namespace mi_pruner::cuda {

void host::Copy::access() const {
  races::reads(from, bytes);
  races::writes(to, 16);
}

void host::Copy::run() const {
  access();
  std::memset(to, 0, 16);
  if (bytes > 0) std::memcpy(to, from, bytes);
}

void Arrivals::count(int64_t bytes) {
  host::races::reads(this, sizeof *this); // what starts them is to come before
  host::races::release(this);
  missing -= bytes;
  if (!expected || missing != 0) return;
  expected = false;
  ++over;
}

void start_arrivals(Arrivals* arrivals) {
  host::races::writes(arrivals, sizeof *arrivals);
  *arrivals = {};
}

void expect_arrivals(Arrivals* arrivals, unsigned bytes) {
  arrivals->expected = true;
  arrivals->count(-int64_t{bytes});
}

void wait_for_arrivals(const Arrivals* arrivals, unsigned phase) {
  host::races::reads(arrivals, sizeof *arrivals);
  while (static_cast<const volatile Arrivals*>(arrivals)->over % 2 == phase % 2) // as on the GPU: no phase but this one
    wait_a_moment();
  host::races::acquire(const_cast<Arrivals*>(arrivals));
}

namespace {

struct MatricesLane {
  const unsigned char* row;
  uint32_t to[4];
};

void load_lanes(MatricesLane* const* lanes) {
  for (int lane = 0; lane < 32; ++lane)
    for (int matrix = 0; matrix < 4; ++matrix)
      std::memcpy(&lanes[lane]->to[matrix], lanes[8 * matrix + lane / 4]->row + lane % 4 * 4, 4);
}

} // namespace

void load_matrices(uint32_t (&to)[4], SharedAddress row, const host::Where where) {
  const unsigned char* const at = reinterpret_cast<const unsigned char*>(row);
  host::races::reads(at, 16);
  const MatricesLane lane =
      host::exchange(MatricesLane{at, {}}, [](MatricesLane* const* lanes) { load_lanes(lanes); }, where);
  std::memcpy(to, lane.to, sizeof to);
}

void multiply_lanes(MatrixLane* const* lanes, float (*widened)(uint16_t)) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 8; ++i) // a0 to a7
      a[g + (i / 2 % 2) * 8][2 * t + i % 2 + i / 4 * 8] =
          widened(static_cast<uint16_t>(lanes[lane]->a[i / 2] >> (i % 2 * 16)));
    for (int i = 0; i < 4; ++i) // b0 to b3
      b[2 * t + i % 2 + i / 2 * 8][g] = widened(static_cast<uint16_t>(lanes[lane]->b[i / 2] >> (i % 2 * 16)));
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) { // c0 to c3
      double sum = lanes[lane]->more[i];
      for (int k = 0; k < 16; ++k)
        sum += static_cast<double>(a[lane / 4 + i / 2 * 8][k]) * b[k][lane % 4 * 2 + i % 2];
      lanes[lane]->c[i] = static_cast<float>(sum);
    }
}

namespace {

// Halves k to k + 7 of a token, of rows of 128 bytes whose 16-byte pieces are permuted by the row: bits 4 to 6 of an
// address by bits 7 to 9.
const uint16_t* piece_at(SharedAddress start, int token, int k) {
  const SharedAddress plain = start + token * 128 + k * 2, place = plain ^ (plain >> 7 & 7) << 4;
  return reinterpret_cast<const uint16_t*>(place);
}

void load_piece(SharedAddress start, int token, int k, float (*widened)(uint16_t), float (&to)[8]) {
  const uint16_t* const from = piece_at(start, token, k);
  for (int i = 0; i < 8; ++i)
    to[i] = widened(from[i]);
}

struct RowsLane {
  float (*c)[4];
};

} // namespace

void multiply_rows(float (*c)[4], int eights, SharedAddress rows, SharedAddress columns, float (*widened)(uint16_t),
                   const host::Where& where) {
  const SharedAddress own = rows + threadIdx.x / 32 % 4 * 16 * 128;
  const auto complete = [&](RowsLane* const* lanes) {
    static float a[16][16], b[128][16]; // a fiber's stack is small
    float piece[8];
    for (int half = 0; half < 2; ++half) {
      for (int r = 0; r < 16; ++r) {
        load_piece(own, r, 8 * half, widened, piece);
        std::memcpy(a[r] + 8 * half, piece, sizeof piece);
      }
      for (int r = 0; r < 8 * eights; ++r) {
        load_piece(columns, r, 8 * half, widened, piece);
        std::memcpy(b[r] + 8 * half, piece, sizeof piece);
      }
    }
    for (int lane = 0; lane < 32; ++lane)
      for (int group = 0; group < eights; ++group)
        for (int i = 0; i < 4; ++i) {
          double sum = lanes[lane]->c[group][i];
          for (int k = 0; k < 16; ++k)
            sum += static_cast<double>(a[lane / 4 + i / 2 * 8][k]) * b[8 * group + lane % 4 * 2 + i % 2][k];
          lanes[lane]->c[group][i] = static_cast<float>(sum);
        }
  };
  // What is read together is not seen by the race check: here each lane tells of its part.
  const int lane = threadIdx.x % 32;
  for (int half = 0; half < 2; ++half) {
    host::races::reads(piece_at(own, lane % 16, 8 * half), 16);
    for (int r = lane; r < 8 * eights; r += 32)
      host::races::reads(piece_at(columns, r, 8 * half), 16);
  }
  host::exchange(RowsLane{c}, complete, where);
}

} // namespace mi_pruner::cuda

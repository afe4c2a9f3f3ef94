// ldmatrix and mma, in the layouts of the PTX manual, lane by lane; see cuda_host.h.
#include "cuda_host.h"
#include "races.h"

namespace mi_pruner::cuda {
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

} // namespace mi_pruner::cuda

// Reductions over a block, in an order that depends on nothing but the number of threads.
#pragma once

#include "cuda/samples.cuh"

namespace mi_pruner::cuda {

struct Sum {
  static constexpr float kNeutral = 0;
  static __device__ float apply(float a, float b) { return a + b; }
};
struct Largest {
  static constexpr float kNeutral = -__builtin_huge_valf();
  static __device__ float apply(float a, float b) { return fmaxf(a, b); }
};

// The same bits in all lanes: a + b = b + a.
template <typename Op> __device__ float warp_reduce(float x) {
  for (int distance = 16; distance > 0; distance /= 2)
    x = Op::apply(x, __shfl_xor_sync(kFullWarp, x, distance));
  return x;
}

// Over the four lanes that hold a row of a tile.
template <typename Op> __device__ float quad_reduce(float x) {
  x = Op::apply(x, __shfl_xor_sync(kFullWarp, x, 1));
  return Op::apply(x, __shfl_xor_sync(kFullWarp, x, 2));
}

constexpr int kMostWarps = 32;

// Several values at once over all threads of a block of whole warps, to all of them: over the lanes, then over the
// warps. `scratch` is free again on return.
template <typename Op, int kValues = 1>
__device__ void block_reduce(float (&x)[kValues], float (&scratch)[2][kMostWarps]) {
  static_assert(kValues <= 2);
  const unsigned lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < kValues; ++k) {
    x[k] = warp_reduce<Op>(x[k]);
    if (lane == 0) scratch[k][threadIdx.x / 32] = x[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kValues; ++k)
    x[k] = warp_reduce<Op>(lane < blockDim.x / 32 ? scratch[k][lane] : Op::kNeutral);
  __syncthreads();
}

template <typename Op> __device__ float block_reduce(float x, float (&scratch)[2][kMostWarps]) {
  float values[1] = {x};
  block_reduce<Op>(values, scratch);
  return values[0];
}

} // namespace mi_pruner::cuda

// Reductions over a block, in an order that depends on nothing but the number of threads.
#pragma once

#include "cuda/samples.cuh"

namespace mi_pruner::cuda {

struct Sum {
  static __device__ float apply(float a, float b) { return a + b; }
};
struct Largest {
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

// Over all threads of a block of whole warps, to all of them. `scratch`: kMostWarps floats, free again on return.
template <typename Op> __device__ float block_reduce(float x, float* scratch) {
  x = warp_reduce<Op>(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  x = scratch[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp)
    x = Op::apply(x, scratch[warp]);
  __syncthreads();
  return x;
}

} // namespace mi_pruner::cuda

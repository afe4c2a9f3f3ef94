// Reductions over a block, in an order that depends on nothing but the number of threads.
#pragma once

#include "cuda/base/samples.cuh"

namespace mi_pruner::cuda {

struct Sum {
  static __device__ float apply(float a, float b) { return a + b; }
};
struct Largest {
  static __device__ float apply(float a, float b) { return fmaxf(a, b); }
};

// Over each kLanes neighbouring lanes; the same bits in all of them: a + b = b + a.
template <typename Op, int kLanes = 32> __device__ float warp_reduce(float x) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    x = Op::apply(x, __shfl_xor_sync(kFullWarp, x, distance));
  return x;
}

// Several values at once, an operation each, over all threads of a block of kWarps warps, to all of them: over the
// lanes, then over the warps. `scratch` is free again when the block has met at another barrier.
template <int kWarps, typename... Ops>
__device__ void block_reduce(float (&x)[sizeof...(Ops)], float (&scratch)[sizeof...(Ops)][kWarps]) {
  const unsigned lane = threadIdx.x % 32;
  int k = 0;
  ((x[k] = warp_reduce<Ops>(x[k]), ++k), ...);
  if (lane == 0)
    for (k = 0; k < static_cast<int>(sizeof...(Ops)); ++k)
      scratch[k][threadIdx.x / 32] = x[k];
  __syncthreads();
  k = 0;
  ((x[k] = warp_reduce<Ops, kWarps>(scratch[k][lane % kWarps]), ++k), ...);
}

} // namespace mi_pruner::cuda

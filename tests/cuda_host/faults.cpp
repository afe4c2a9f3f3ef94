// Kernels with one fault each, for the tests of the harness itself: `faults NAME` prints what became of them.
#include <cstdio>
#include <cstring>
#include <vector>

#include "cuda_host.h"

namespace {

constexpr unsigned kThreads = 64;

struct Shared {
  float values[kThreads];
};

// Each thread writes, and all add up what their left neighbours wrote.
void neighbours(float* out, bool barrier) {
  MI_PRUNER_SHARED(Shared, shared);
  shared.values[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (barrier) __syncthreads();
  out[threadIdx.x] = shared.values[(threadIdx.x + kThreads - 1) % kThreads];
}

void out_of_bounds(float* out) {
  MI_PRUNER_SHARED(Shared, shared);
  shared.values[threadIdx.x + 1] = 1;
  __syncthreads();
  out[threadIdx.x] = shared.values[threadIdx.x];
}

void divergent() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

void divergent_warp(float* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}

void ends_early() {
  if (threadIdx.x == 5) return;
  __syncthreads();
}

void spins(const unsigned* flag) {
  while (mi_pruner::cuda::load_acquire(flag) == 0)
    mi_pruner::cuda::wait_a_moment();
}

// Block 0 waits for what block 1 writes: blocks of a cooperative launch make progress together.
void waits_for_a_block(unsigned* flag) {
  if (blockIdx.x == 0) {
    while (mi_pruner::cuda::load_acquire(flag) == 0)
      mi_pruner::cuda::wait_a_moment();
  } else if (threadIdx.x == 0) {
    mi_pruner::cuda::add_release(flag, 1);
  }
}

} // namespace

int main(int, char** arguments) {
  namespace host = mi_pruner::cuda::host;
  const auto is = [&](const char* name) { return std::strcmp(arguments[1], name) == 0; };
  std::vector<float> out(kThreads, -1);
  unsigned flag = 0;
  const cudaError_t error =
      host::run(is("waits-for-a-block") ? 2 : 1, kThreads, sizeof(Shared), is("waits-for-a-block"), [&] {
        if (is("neighbours") || is("missing-barrier")) neighbours(out.data(), is("neighbours"));
        if (is("out-of-bounds")) out_of_bounds(out.data());
        if (is("divergent")) divergent();
        if (is("divergent-warp")) divergent_warp(out.data());
        if (is("ends-early")) ends_early();
        if (is("spins")) spins(&flag);
        if (is("waits-for-a-block")) waits_for_a_block(&flag);
      });
  if (error != cudaSuccess) {
    std::puts(cudaGetErrorString(error));
    return 1;
  }
  if (is("neighbours") || is("missing-barrier"))
    for (unsigned t = 0; t < kThreads; ++t)
      if (out[t] != static_cast<float>((t + kThreads - 1) % kThreads)) {
        std::puts("wrong");
        return 1;
      }
  std::puts("right");
  return 0;
}

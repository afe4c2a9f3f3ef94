// Kernels with one fault each, for the tests of the harness itself: `faults NAME` prints what became of them.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
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

template <bool> void barrier_of_an_instance() { __syncthreads(); }

void divergent_instances() {
  if (threadIdx.x < 32)
    barrier_of_an_instance<true>();
  else
    barrier_of_an_instance<false>();
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

// Block 0 waits for what block 1 writes: blocks that run together make progress together.
void waits_for_a_block(float* out, unsigned* flag, bool release) {
  MI_PRUNER_SHARED(Shared, shared);
  if (blockIdx.x == 0) {
    while (mi_pruner::cuda::load_acquire(flag) == 0)
      mi_pruner::cuda::wait_a_moment();
    shared.values[threadIdx.x] = out[kThreads - 1 - threadIdx.x];
  } else {
    out[threadIdx.x] = 1;
    __syncthreads();
    if (threadIdx.x == 0) __atomic_fetch_add(flag, 1, release ? __ATOMIC_RELEASE : __ATOMIC_RELAXED);
  }
}

// Right on this host in any order, and yet races.
void two_writers() {
  MI_PRUNER_SHARED(Shared, shared);
  if (threadIdx.x % 32 == 0) shared.values[0] = 1;
}

void collective_for_a_barrier(float* out) {
  MI_PRUNER_SHARED(Shared, shared);
  shared.values[threadIdx.x] = 1;
  __ballot_sync(0xffffffffu, 1);
  out[threadIdx.x] = shared.values[threadIdx.x ^ 1];
}

void copy_over_what_others_read(float* out, const float4* from) {
  MI_PRUNER_SHARED(Shared, shared);
  shared.values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = shared.values[kThreads - 1 - threadIdx.x];
  if (threadIdx.x == 0) mi_pruner::cuda::copy_async(shared.values, from, sizeof *from);
}

// Blocks that run one after another only here.
void all_blocks_write(float* out) {
  if (threadIdx.x == 0) out[0] = static_cast<float>(blockIdx.x);
}

// A cluster of two blocks: each thread sends its number to its twin in the other block.
constexpr unsigned kBlocks = 2;

struct alignas(16) Parcel {
  int64_t from, empty;
};

struct ClusterShared {
  mi_pruner::cuda::Arrivals arrivals;
  Parcel parcels[kThreads];
};

enum class ClusterFault { kNone, kNoWait, kTooEarly, kOutOfBounds, kEnded, kDivergent, kEndsEarly, kLost };

void send_to_the_other(float* out, ClusterFault fault) {
  using namespace mi_pruner::cuda;
  MI_PRUNER_SHARED(ClusterShared, shared);
  if (threadIdx.x == 0) {
    start_arrivals(&shared.arrivals);
    expect_arrivals(&shared.arrivals, sizeof shared.parcels);
  }
  if (fault == ClusterFault::kEndsEarly && blockIdx.x == 1 && threadIdx.x == 5) return;
  if (fault == ClusterFault::kDivergent && blockIdx.x == 1)
    cluster_barrier();
  else if (fault != ClusterFault::kTooEarly)
    cluster_barrier();
  if (fault == ClusterFault::kEnded) {
    if (blockIdx.x == 1) return;
    for (int turns = 0; turns < 1000; ++turns)
      wait_a_moment();
  }
  const int place = static_cast<int>(threadIdx.x) + (fault == ClusterFault::kOutOfBounds ? 1 : 0);
  if (fault != ClusterFault::kLost || blockIdx.x == 0 || threadIdx.x != 5)
    send_async(shared.parcels + place, Parcel{place, 0}, &shared.arrivals, 1 - blockIdx.x);
  if (fault != ClusterFault::kNoWait) wait_for_arrivals(&shared.arrivals, 0);
  if (blockIdx.x == 0)
    out[threadIdx.x] = static_cast<float>(shared.parcels[(threadIdx.x + kThreads - 1) % kThreads].from);
  cluster_barrier(); // so that nobody ends too early
}

struct Named {
  const char* name;
  ClusterFault fault;
};
constexpr Named kClusterKernels[] = {{"cluster", ClusterFault::kNone},
                                     {"missing-wait", ClusterFault::kNoWait},
                                     {"too-early", ClusterFault::kTooEarly},
                                     {"out-of-bounds-of-another", ClusterFault::kOutOfBounds},
                                     {"ended-block", ClusterFault::kEnded},
                                     {"divergent-cluster", ClusterFault::kDivergent},
                                     {"ends-early-in-a-cluster", ClusterFault::kEndsEarly},
                                     {"lost-parcel", ClusterFault::kLost}};

} // namespace

int main(int, char** arguments) {
  namespace host = mi_pruner::cuda::host;
  const auto is = [&](const char* name) { return std::strcmp(arguments[1], name) == 0; };
  std::vector<float> out(kThreads, -1);
  const float4 parcel{};
  const bool waits = is("waits-for-a-block") || is("missing-release"), two = waits || is("all-blocks-write"); // blocks
  if (waits) setenv("MI_PRUNER_HOST_TOGETHER", "2", 1);
  unsigned flag = 0;
  cudaError_t error = cudaSuccess;
  const Named* const cluster = std::find_if(std::begin(kClusterKernels), std::end(kClusterKernels),
                                            [&](const Named& kernel) { return is(kernel.name); });
  if (cluster != std::end(kClusterKernels))
    error = host::run(kBlocks, kThreads, sizeof(ClusterShared), kBlocks,
                      [&] { send_to_the_other(out.data(), cluster->fault); });
  else
    error = host::run(two ? 2 : 1, kThreads, sizeof(Shared), 1, [&] {
      if (is("neighbours") || is("missing-barrier")) neighbours(out.data(), is("neighbours"));
      if (is("out-of-bounds")) out_of_bounds(out.data());
      if (is("divergent")) divergent();
      if (is("divergent-instances")) divergent_instances();
      if (is("divergent-warp")) divergent_warp(out.data());
      if (is("ends-early")) ends_early();
      if (is("spins")) spins(&flag);
      if (waits) waits_for_a_block(out.data(), &flag, is("waits-for-a-block"));
      if (is("two-writers")) two_writers();
      if (is("collective-for-a-barrier")) collective_for_a_barrier(out.data());
      if (is("copy-over-what-others-read")) copy_over_what_others_read(out.data(), &parcel);
      if (is("all-blocks-write")) all_blocks_write(out.data());
    });
  if (error != cudaSuccess) {
    std::puts(cudaGetErrorString(error));
    return 1;
  }
  if (is("neighbours") || is("missing-barrier") || cluster != std::end(kClusterKernels))
    for (unsigned t = 0; t < kThreads; ++t)
      if (out[t] != static_cast<float>((t + kThreads - 1) % kThreads)) {
        std::puts("wrong");
        return 1;
      }
  std::puts("right");
  return 0;
}

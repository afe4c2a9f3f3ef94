// The CUDA kernels as plain C++ on the CPU: one fiber for each CUDA thread.
//
// A fiber runs until it has to wait for others: at a barrier, a warp collective, a spin on memory. Next goes on one of
// those that were last let go, so that a warp comes as far as it can by itself, or any, by a seed. Blocks (or clusters
// of them) run one after another, in random orders four at a time, or as many as MI_PRUNER_HOST_TOGETHER says, the next
// ones when these have ended: a block may wait for those before it. What is checked on the way: threads of a block
// (of a warp, of a cluster) that wait at different places of the source, that end while others wait, or that wait for
// ever; fresh shared memory holds NaN. A missing barrier shows as a wrong result under some seed, a write out of bounds
// under the address sanitizer: shared memory is an allocation of its exact size, which goes when its block ends; races
// show under the thread sanitizer: races.h. What is not: the order that the hardware keeps, and the encoding of the
// instructions in ptx.cuh.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchFailure = 719 };

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

extern dim3 threadIdx, blockIdx, blockDim;

namespace mi_pruner::cuda::host {

using Where = std::source_location;

// Runs `thread` in every thread of every block. MI_PRUNER_HOST_SEED: of the order; 0 by default, a warp after another.
// Every `cluster` neighbouring blocks are a cluster.
cudaError_t run(unsigned blocks, unsigned threads, size_t shared, unsigned cluster,
                const std::function<void()>& thread);

int device();            // a number for the present values of the next three: to the launches, a device each
int processors();        // multiprocessors: MI_PRUNER_HOST_BLOCKS, 5 by default
int resident_clusters(); // at a time; MI_PRUNER_HOST_CLUSTERS, none by default
bool has_groups();       // of warps, that multiply together; MI_PRUNER_HOST_GROUPS, none by default
int64_t row_bytes();     // for rows as needed; MI_PRUNER_HOST_ROW_BYTES, by default so few that rows are forgotten

void* shared_memory();
// Work that the thread goes on with by itself until it waits for it: begun now or then.
void begin(std::function<void()> work);
void commit_work();
void finish_work(unsigned pending);
void wait_a_moment();                             // until others have had their turn
void maybe_wait();                                // in random orders: before what other blocks see, or see done
int block_barrier(bool vote, const Where& where); // returns the number of votes
void cluster_barrier(const Where& where);
void warp_barrier(const Where& where);
// What is at `shared`, in this block's shared memory, in that of another block of its cluster; to be written next.
void* in_block(void* shared, unsigned rank);
// Orders no memory.
void warp_collective(void* mine, const std::function<void(void* const*)>& complete, const Where& where);

// All lanes give a slot; the last to come completes them all.
template <typename Slot, typename F> Slot exchange(Slot mine, const F& complete, const Where& where) {
  warp_collective(&mine, [&](void* const* lanes) { complete(reinterpret_cast<Slot* const*>(lanes)); }, where);
  return mine;
}

} // namespace mi_pruner::cuda::host

using mi_pruner::cuda::host::Where;

inline void __syncthreads(const Where where = Where::current()) { mi_pruner::cuda::host::block_barrier(false, where); }
inline int __syncthreads_count(int vote, const Where where = Where::current()) {
  return mi_pruner::cuda::host::block_barrier(vote != 0, where);
}

inline void __syncwarp(const Where where = Where::current()) { mi_pruner::cuda::host::warp_barrier(where); }

template <typename T, typename Source> T mi_pruner_shuffle(T value, const Source& source, const Where& where) {
  return mi_pruner::cuda::host::exchange(
      value,
      [&](T* const* lanes) {
        T old[32];
        for (int lane = 0; lane < 32; ++lane)
          old[lane] = *lanes[lane];
        for (int lane = 0; lane < 32; ++lane)
          *lanes[lane] = old[source(lane)];
      },
      where);
}
inline float __shfl_xor_sync(unsigned, float value, int distance, const Where where = Where::current()) {
  return mi_pruner_shuffle(value, [distance](int lane) { return lane ^ distance; }, where);
}
inline unsigned __shfl_sync(unsigned, unsigned value, int from, const Where where = Where::current()) {
  return mi_pruner_shuffle(value, [from](int) { return from; }, where);
}

template <typename Op> unsigned mi_pruner_reduce(unsigned value, const Op& op, const Where& where) {
  return mi_pruner::cuda::host::exchange(
      value,
      [&](unsigned* const* lanes) {
        unsigned all = *lanes[0];
        for (int lane = 1; lane < 32; ++lane)
          all = op(all, *lanes[lane]);
        for (int lane = 0; lane < 32; ++lane)
          *lanes[lane] = all;
      },
      where);
}
inline unsigned __reduce_max_sync(unsigned, unsigned value, const Where where = Where::current()) {
  return mi_pruner_reduce(value, [](unsigned a, unsigned b) { return a > b ? a : b; }, where);
}
inline unsigned __reduce_min_sync(unsigned, unsigned value, const Where where = Where::current()) {
  return mi_pruner_reduce(value, [](unsigned a, unsigned b) { return a < b ? a : b; }, where);
}
inline unsigned __reduce_add_sync(unsigned, unsigned value, const Where where = Where::current()) {
  return mi_pruner_reduce(value, [](unsigned a, unsigned b) { return a + b; }, where);
}
inline unsigned __ballot_sync(unsigned, int vote, const Where where = Where::current()) {
  const unsigned lane = threadIdx.x % 32;
  return mi_pruner_reduce(vote != 0 ? 1u << lane : 0, [](unsigned a, unsigned b) { return a | b; }, where);
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

template <typename To, typename From> To mi_pruner_bits(From from) {
  To to;
  static_assert(sizeof to == sizeof from);
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline unsigned __float_as_uint(float x) { return mi_pruner_bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return mi_pruner_bits<float>(x); }
inline float __int_as_float(int x) { return mi_pruner_bits<float>(x); }

template <typename T> T __ldg(const T* from) { return *from; }
template <typename T> T __ldcg(const T* from) { return *from; }

#include "runtime.h"

#define MI_PRUNER_SHARED(type, name) type& name = *static_cast<type*>(mi_pruner::cuda::host::shared_memory())

namespace mi_pruner::cuda {

// Twins of the functions in ptx.cuh.

inline const char* at_multiple(const void* base, unsigned index, unsigned bytes) {
  return static_cast<const char*>(base) + uint64_t{index} * bytes;
}
inline float exp2_fast(float x) { return x < -126 ? 0.0f : exp2f(x); }
inline float larger(float x, float y) { return x != x || y != y ? x + y : x < y ? y : x; }
template <typename T> void keep(T&) {}
template <typename T> class SharedPlace {
public:
  explicit SharedPlace(T* shared) : address_(shared) {}
  void store_if(bool takes_part, unsigned offset, const T& value) const {
    if (takes_part) address_[offset] = value;
  }

private:
  T* address_;
};

using SharedAddress = uintptr_t;
inline SharedAddress shared_address(const void* shared) { return reinterpret_cast<SharedAddress>(shared); }

// Copies arrive when they are waited for; in random orders, some at once.
void copy_async(void* shared, const void* global, unsigned bytes);
inline void copy_async(SharedAddress shared, const void* global) {
  copy_async(reinterpret_cast<void*>(shared), global, 16);
}
void commit_copies();
void wait_for_copies(unsigned pending);
template <int kPending> void wait_for_copies() { wait_for_copies(kPending); }
inline void add_release(unsigned* global, unsigned value) {
  host::maybe_wait();
  __atomic_fetch_add(global, value, __ATOMIC_RELEASE);
}
inline unsigned add_acquire_release(unsigned* global, unsigned value) {
  host::maybe_wait();
  return __atomic_fetch_add(global, value, __ATOMIC_ACQ_REL);
}
inline unsigned swap_acquire_release(unsigned* global, unsigned value) {
  host::maybe_wait();
  return __atomic_exchange_n(global, value, __ATOMIC_ACQ_REL);
}
inline void store_release(unsigned* global, unsigned value) {
  host::maybe_wait();
  __atomic_store_n(global, value, __ATOMIC_RELEASE);
}
template <typename T> void store_relaxed(T* global, T word) { __atomic_store_n(global, word, __ATOMIC_RELAXED); }
template <typename T> T load_relaxed(const T* global) { return __atomic_load_n(global, __ATOMIC_RELAXED); }
inline unsigned load_acquire(const unsigned* global) {
  host::maybe_wait();
  return __atomic_load_n(global, __ATOMIC_ACQUIRE);
}
template <typename T> T* at_address(SharedAddress at) { return reinterpret_cast<T*>(at); }
inline void store_hint(SharedAddress at, uint64_t word) {
  __atomic_store_n(at_address<uint64_t>(at), word, __ATOMIC_RELAXED);
}
inline uint64_t load_hint(SharedAddress at) { return __atomic_load_n(at_address<uint64_t>(at), __ATOMIC_RELAXED); }
template <typename T> void tell(SharedAddress at, T word) {
  __atomic_store_n(at_address<T>(at), word, __ATOMIC_RELEASE);
}
template <typename T> T told(SharedAddress at) { return __atomic_load_n(at_address<T>(at), __ATOMIC_ACQUIRE); }
template <typename T> void pass(SharedAddress at, T word) { tell(at, word); }
inline float4 load_four(SharedAddress at) { return *at_address<float4>(at); }
inline void wait_a_moment() { host::wait_a_moment(); }
inline void look_again() { host::wait_a_moment(); }

constexpr bool kHasClusters = true;
inline void cluster_barrier(const host::Where where = host::Where::current()) { host::cluster_barrier(where); }

inline void cluster_end(const host::Where where = host::Where::current()) { host::cluster_barrier(where); }

// Bytes that others send, counted phase by phase.
struct Arrivals {
  uint32_t over;   // phases
  bool expected;   // the one after them
  int64_t missing; // bytes of it
  void count(int64_t bytes);
};
inline uint64_t* place_in(uint64_t* shared, unsigned rank) {
  return static_cast<uint64_t*>(host::in_block(shared, rank));
}
inline void send_hint(uint64_t* there, uint64_t word) { store_hint(shared_address(there), word); }
inline uint64_t load_sent(SharedAddress at) { return load_hint(at); }
template <typename T> T load_from(const T* shared, unsigned rank) {
  return *static_cast<const T*>(host::in_block(const_cast<T*>(shared), rank));
}
void start_arrivals(Arrivals* arrivals);
void expect_arrivals(Arrivals* arrivals, unsigned bytes);
void wait_for_arrivals(const Arrivals* arrivals, unsigned phase);
template <typename T> void send_async(T* shared, const T& value, Arrivals* arrivals, unsigned rank) {
  static_assert(sizeof(T) == 16 && alignof(T) == 16);
  *static_cast<T*>(host::in_block(shared, rank)) = value;
  static_cast<Arrivals*>(host::in_block(arrivals, rank))->count(sizeof(T));
}
struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};
inline float widen(Brain x) { return __uint_as_float(uint32_t{x.bits} << 16); }
inline float widen(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = uint32_t(x.bits & 0x7fff) << 13;
  if (magnitude >= 0x0f800000) return __uint_as_float(sign | 0x7f800000 | magnitude);
  return __uint_as_float(sign | __float_as_uint(__uint_as_float(magnitude) * 0x1p112f));
}

void load_matrices(uint32_t (&to)[4], SharedAddress row, const host::Where where = host::Where::current());

// c = a b + more, rounded to float32 once, as tensor cores nearly do; layouts as in the PTX manual.
struct MatrixLane {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
  float more[4];
};
void multiply_lanes(MatrixLane* const* lanes, float (*widened)(uint16_t));

// Products of groups of warps are made when they are waited for or, in random orders, at once.
constexpr bool kHasGroups = true;
inline void show_copies() {}
inline void begin_products() {}
inline void commit_products() { host::commit_work(); }
template <int kPending> void wait_for_products() { host::finish_work(kPending); }
template <int kEights> void wait_for_products(float (&)[kEights][4]) { host::finish_work(0); }

// A warp's 16 rows with `eights` times 8 columns; the first of the group's 64 is at `rows`.
void multiply_rows(float (*c)[4], int eights, SharedAddress rows, SharedAddress columns, float (*widened)(uint16_t),
                   const host::Where& where);
template <int kEights, typename T>
void multiply_group(float (&c)[kEights][4], SharedAddress rows, SharedAddress columns, T,
                    const host::Where where = host::Where::current()) {
  host::begin([&c, rows, columns, where] {
    multiply_rows(c, kEights, rows, columns, [](uint16_t bits) { return widen(T{bits}); }, where);
  });
}

template <typename T>
void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&more)[4], T,
              const host::Where where = host::Where::current()) {
  host::exchange(
      MatrixLane{c, a, {b0, b1}, {more[0], more[1], more[2], more[3]}},
      [](MatrixLane* const* lanes) { multiply_lanes(lanes, [](uint16_t bits) { return widen(T{bits}); }); }, where);
}

} // namespace mi_pruner::cuda

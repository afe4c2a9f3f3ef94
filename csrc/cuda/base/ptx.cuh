// The instructions that CUDA C++ has no word for, a function each. tests/cuda_host/cuda_host.h has the same functions
// for the host: everything else in this folder compiles as plain C++, too.
#pragma once

#ifdef MI_PRUNER_CUDA_HOST
#include "cuda_host.h"
#else
#include <cstdint>
#include <cstring>

#include <cuda_runtime.h>

// The block's dynamic shared memory, the only kind that the kernels use, as a `type` named `name`.
#define MI_PRUNER_SHARED(type, name)                                                                                   \
  extern __shared__ __align__(1024) unsigned char mi_pruner_shared_bytes[];                                            \
  type& name = *reinterpret_cast<type*>(mi_pruner_shared_bytes)

namespace mi_pruner::cuda {

// base + index * bytes, in one instruction.
__device__ __forceinline__ const char* at_multiple(const void* base, unsigned index, unsigned bytes) {
  const char* at;
  asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(at) : "r"(index), "r"(bytes), "l"(base));
  return at;
}

// 2^x, good to 2^-22; 0 below 2^-126.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// NaN where either is, other than fmaxf.
__device__ __forceinline__ float larger(float x, float y) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(x), "f"(y));
  return larger;
}

// Has the compiler keep a value of a loop in a register, where it would fetch or reckon it anew at every turn.
template <typename T> __device__ __forceinline__ void keep(T& value) {
  static_assert(sizeof(T) == 4);
  asm volatile("" : "+r"(value));
}

// An address in shared memory to reckon with.
using SharedAddress = unsigned;
__device__ __forceinline__ SharedAddress shared_address(const void* shared) {
  return static_cast<SharedAddress>(__cvta_generic_to_shared(shared));
}

// A place in shared memory, as an address of 32 bits: that of a reference would be formed anew at every use.
template <typename T> class SharedPlace {
public:
  __device__ explicit SharedPlace(T* shared) : address_(shared_address(shared)) { keep(address_); }

  // By the threads with `takes_part`, without a branch; `offset`: from the place, in elements.
  __device__ void store_if(bool takes_part, unsigned offset, const T& value) const {
    unsigned words[2];
    memcpy(words, &value, sizeof value);
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.u32 p, %3, 0;\n"
                 "@p st.shared.v2.u32 [%0], {%1, %2};\n"
                 "}" ::"r"(address_ + offset * unsigned{sizeof(T)}),
                 "r"(words[0]), "r"(words[1]), "r"(unsigned{takes_part})
                 : "memory");
  }

private:
  SharedAddress address_;
};

// Copies 16 bytes from global to shared memory, asynchronously. The 256 around them are brought to L2: a stage takes
// 128 of a token, and memory is faster in longer runs.
__device__ __forceinline__ void copy_async(SharedAddress shared, const void* global) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most `kPending` of the groups that this thread committed are still on their way.
template <int kPending> __device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8, and receives of each
// matrix the elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}

struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

// c (16 x 8) = a (16 x 16) b (16 x 8) + more, in the layout of mma.m16n8k16; c and more may be the same.
#define MI_PRUNER_MULTIPLY(Type, type)                                                                                 \
  __device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,            \
                                           const float (&more)[4], Type) {                                             \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "    \
                 "{%8, %9}, {%10, %11, %12, %13};"                                                                     \
                 : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])                                                      \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(more[0]), "f"(more[1]),           \
                   "f"(more[2]), "f"(more[3]));                                                                        \
  }
MI_PRUNER_MULTIPLY(Half, "f16")
MI_PRUNER_MULTIPLY(Brain, "bf16")
#undef MI_PRUNER_MULTIPLY

// Matrix products by groups of four warps, from shared memory, on architectures that have them (sm_90a alone):
// elsewhere nothing below may be called. They go on by themselves, in the order in which they were begun.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasGroups = true;

// What this thread wrote to shared memory, or copied there and waited for, is seen by products that are begun after a
// barrier.
__device__ __forceinline__ void show_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Before the first of some products: their sums were written by other instructions.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// These are a group (of products) that is waited for.
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most `kPending` groups are in progress.
template <int kPending> __device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

#define MI_PRUNER_QUAD(j) "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
#define MI_PRUNER_FOUR_QUADS(j) MI_PRUNER_QUAD(j), MI_PRUNER_QUAD(j + 1), MI_PRUNER_QUAD(j + 2), MI_PRUNER_QUAD(j + 3)
#define MI_PRUNER_EIGHT_QUADS(j) MI_PRUNER_FOUR_QUADS(j), MI_PRUNER_FOUR_QUADS(j + 4)

// Until all are done; the sums may be read then.
__device__ __forceinline__ void wait_for_products(float (&c)[4][4]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" : MI_PRUNER_FOUR_QUADS(0)::"memory");
}
__device__ __forceinline__ void wait_for_products(float (&c)[8][4]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" : MI_PRUNER_EIGHT_QUADS(0)::"memory");
}
__device__ __forceinline__ void wait_for_products(float (&c)[16][4]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" : MI_PRUNER_EIGHT_QUADS(0), MI_PRUNER_EIGHT_QUADS(8)::"memory");
}

// 16 halves of 8, 16, ... tokens from this address on: rows of 128 bytes, whose 16-byte pieces are permuted by the row.
__device__ __forceinline__ uint64_t matrix_at(SharedAddress start) {
  constexpr uint64_t kRowsOfEight = 1024 / 16, kPermuted = 1; // of 128 bytes
  return uint64_t{start >> 4} | uint64_t{1} << 16 | kRowsOfEight << 32 | kPermuted << 62;
}

// c (64 x 32, 64 or 128) += a (64 x 16) b (16 x 32, 64 or 128), of 16 halves of the 64 tokens at `rows` and of those at
// `columns`; a warp of the four has 16 rows, and of them each thread what it has of eight columns in `multiply`, for
// each eight.
#define MI_PRUNER_MULTIPLY_GROUP(Type, type)                                                                           \
  __device__ __forceinline__ void multiply_group(float (&c)[4][4], SharedAddress rows, SharedAddress columns, Type) {  \
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type " {"                                      \
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"                                \
                 "}, %16, %17, 1, 1, 1, 0, 0;"                                                                         \
                 : MI_PRUNER_FOUR_QUADS(0)                                                                             \
                 : "l"(matrix_at(rows)), "l"(matrix_at(columns)));                                                     \
  }                                                                                                                    \
  __device__ __forceinline__ void multiply_group(float (&c)[8][4], SharedAddress rows, SharedAddress columns, Type) {  \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {"                                      \
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                              \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"                      \
                 "}, %32, %33, 1, 1, 1, 0, 0;"                                                                         \
                 : MI_PRUNER_EIGHT_QUADS(0)                                                                            \
                 : "l"(matrix_at(rows)), "l"(matrix_at(columns)));                                                     \
  }                                                                                                                    \
  __device__ __forceinline__ void multiply_group(float (&c)[16][4], SharedAddress rows, SharedAddress columns, Type) { \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {"                                     \
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                              \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                    \
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                    \
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"                      \
                 "}, %64, %65, 1, 1, 1, 0, 0;"                                                                         \
                 : MI_PRUNER_EIGHT_QUADS(0), MI_PRUNER_EIGHT_QUADS(8)                                                  \
                 : "l"(matrix_at(rows)), "l"(matrix_at(columns)));                                                     \
  }
MI_PRUNER_MULTIPLY_GROUP(Half, "f16")
MI_PRUNER_MULTIPLY_GROUP(Brain, "bf16")
#undef MI_PRUNER_MULTIPLY_GROUP
#undef MI_PRUNER_EIGHT_QUADS
#undef MI_PRUNER_FOUR_QUADS
#undef MI_PRUNER_QUAD
#else
constexpr bool kHasGroups = false;
__device__ __forceinline__ void show_copies() {}
__device__ __forceinline__ void begin_products() {}
__device__ __forceinline__ void commit_products() {}
template <int kPending> __device__ __forceinline__ void wait_for_products() {}
template <int kEights> __device__ __forceinline__ void wait_for_products(float (&)[kEights][4]) {}
template <int kEights, typename T>
__device__ void multiply_group(float (&)[kEights][4], SharedAddress, SharedAddress, T) {}
#endif

// Adds to a counter; a block that then reads it by `load_acquire` sees what was written before, also by other threads
// of this block that met this one at a barrier.
__device__ __forceinline__ void add_release(unsigned* global, unsigned value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(global), "r"(value) : "memory");
}

// The same, and what a `load_acquire` would see: returns what the counter was.
__device__ __forceinline__ unsigned add_acquire_release(unsigned* global, unsigned value) {
  unsigned before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(global), "r"(value) : "memory");
  return before;
}

// The same, of a new value in its place.
__device__ __forceinline__ unsigned swap_acquire_release(unsigned* global, unsigned value) {
  unsigned before;
  asm volatile("atom.exch.acq_rel.gpu.global.b32 %0, [%1], %2;" : "=r"(before) : "l"(global), "r"(value) : "memory");
  return before;
}

// A new value, as `add_release` leaves one.
__device__ __forceinline__ void store_release(unsigned* global, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(global), "r"(value) : "memory");
}

// What other blocks wrote before this thread saw them arrive.
__device__ __forceinline__ unsigned load_acquire(const unsigned* global) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(global) : "memory");
  return value;
}

// A word for blocks that may be waiting for it, in one access, and such a word. No other memory is ordered by it.
__device__ __forceinline__ void store_relaxed(uint64_t* global, uint64_t word) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(global), "l"(word) : "memory");
}
__device__ __forceinline__ void store_relaxed(unsigned* global, unsigned word) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(global), "r"(word) : "memory");
}
__device__ __forceinline__ uint64_t load_relaxed(const uint64_t* global) {
  uint64_t word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(global) : "memory");
  return word;
}
__device__ __forceinline__ unsigned load_relaxed(const unsigned* global) {
  unsigned word;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(global) : "memory");
  return word;
}

// The same within a block, in its shared memory.
__device__ __forceinline__ void store_hint(SharedAddress at, uint64_t word) {
  asm volatile("st.relaxed.cta.shared.u64 [%0], %1;" ::"r"(at), "l"(word) : "memory");
}
__device__ __forceinline__ uint64_t load_hint(SharedAddress at) {
  uint64_t word;
  asm volatile("ld.relaxed.cta.shared.u64 %0, [%1];" : "=l"(word) : "r"(at) : "memory");
  return word;
}

// A word of shared memory for who waits for it: with it is seen what was written before, also by other threads of this
// warp that met this one.
template <typename T> __device__ __forceinline__ void tell(SharedAddress at, T word) {
  static_assert(sizeof(T) == 4);
  asm volatile("st.release.cta.shared.u32 [%0], %1;" ::"r"(at), "r"(word) : "memory");
}
template <typename T> __device__ __forceinline__ T told(SharedAddress at) {
  static_assert(sizeof(T) == 4);
  T word;
  asm volatile("ld.acquire.cta.shared.u32 %0, [%1];" : "=r"(word) : "r"(at) : "memory");
  return word;
}

// The same for who waits until what this thread has read may be overwritten. It has been read: shared memory serves a
// multiprocessor's accesses in their order. Nothing that was written is seen with it.
template <typename T> __device__ __forceinline__ void pass(SharedAddress at, T word) {
  static_assert(sizeof(T) == 4);
  asm volatile("st.relaxed.cta.shared.u32 [%0], %1;" ::"r"(at), "r"(word) : "memory");
}

__device__ __forceinline__ float4 load_four(SharedAddress at) {
  float4 four;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(four.x), "=f"(four.y), "=f"(four.z), "=f"(four.w)
               : "r"(at)
               : "memory");
  return four;
}

__device__ __forceinline__ void wait_a_moment() { __nanosleep(20); }

// Before another look at what others are about to write: no wait at all.
__device__ __forceinline__ void look_again() {}

// Bytes that other blocks of a cluster send to the shared memory of this one: an mbarrier.
struct Arrivals {
  uint64_t state;
};

// Thread-block clusters, where the architecture has them: elsewhere nothing below may be called.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool kHasClusters = true;

// A barrier for all threads of the cluster.
__device__ __forceinline__ void cluster_barrier() {
  __syncwarp(); // the instructions want the whole warp
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The same where a block ends: others may still read its shared memory, and nothing is written for them any more. What
// has been read itself is in registers by then, as sums and stores have used it: nothing is left to be ordered.
__device__ __forceinline__ void cluster_end() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

// By one thread; the cluster's barrier must follow before anything is sent.
__device__ __forceinline__ void start_arrivals(Arrivals* arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(arrivals)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// By one thread, once in each phase, which is over when `bytes` have arrived.
__device__ __forceinline__ void expect_arrivals(Arrivals* arrivals, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(arrivals)), "r"(bytes)
               : "memory");
}

// 16 bytes to the same place in the shared memory of block `rank` of the cluster, where they count as arrived.
template <typename T>
__device__ __forceinline__ void send_async(T* shared, const T& value, Arrivals* arrivals, unsigned rank) {
  static_assert(sizeof(T) == 16 && alignof(T) == 16);
  uint64_t words[2];
  memcpy(words, &value, sizeof words);
  asm volatile("{\n"
               ".reg .b32 to, counter;\n"
               "mapa.shared::cluster.u32 to, %0, %2;\n"
               "mapa.shared::cluster.u32 counter, %1, %2;\n"
               "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b64 [to], {%3, %4}, [counter];\n"
               "}" ::"r"(shared_address(shared)),
               "r"(shared_address(arrivals)), "r"(rank), "l"(words[0]), "l"(words[1])
               : "memory");
}

// Where block `rank` of the cluster has what is here at `shared`; a word there, in one access, and such a word that was
// sent. No other memory is ordered by it.
__device__ __forceinline__ uint64_t* place_in(uint64_t* shared, unsigned rank) {
  uint64_t* there;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(shared), "r"(rank)); // volatile: kept, not reckoned anew
  return there;
}
__device__ __forceinline__ void send_hint(uint64_t* there, uint64_t word) {
  asm volatile("st.relaxed.cluster.u64 [%0], %1;" ::"l"(there), "l"(word) : "memory");
}
__device__ __forceinline__ uint64_t load_sent(SharedAddress at) {
  uint64_t word;
  asm volatile("ld.relaxed.cluster.shared::cta.u64 %0, [%1];" : "=l"(word) : "r"(at) : "memory");
  return word;
}

// What block `rank` of the cluster has at this place of its shared memory, written before the cluster's last barrier.
__device__ __forceinline__ float load_from(const float* shared, unsigned rank) {
  unsigned from;
  float value;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(from) : "r"(shared_address(shared)), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(from) : "memory");
  return value;
}
__device__ __forceinline__ unsigned load_from(const unsigned* shared, unsigned rank) {
  unsigned from, value;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(from) : "r"(shared_address(shared)), "r"(rank));
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(from) : "memory");
  return value;
}
__device__ __forceinline__ float4 load_from(const float4* shared, unsigned rank) {
  unsigned from;
  float4 value;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(from) : "r"(shared_address(shared)), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "r"(from)
               : "memory");
  return value;
}

// Until phase number `phase` (from 0) is over; what has arrived is then seen.
__device__ __forceinline__ void wait_for_arrivals(Arrivals* arrivals, unsigned phase) {
  unsigned over;
  do {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n"
                 "}"
                 : "=r"(over)
                 : "r"(shared_address(arrivals)), "r"(phase & 1)
                 : "memory");
  } while (over == 0);
}
#else
constexpr bool kHasClusters = false;
__device__ __forceinline__ void cluster_barrier() {}
__device__ __forceinline__ void cluster_end() {}
__device__ __forceinline__ uint64_t* place_in(uint64_t* shared, unsigned) { return shared; }
__device__ __forceinline__ void send_hint(uint64_t*, uint64_t) {}
__device__ __forceinline__ uint64_t load_sent(SharedAddress) { return 0; }
__device__ __forceinline__ void start_arrivals(Arrivals*) {}
__device__ __forceinline__ void expect_arrivals(Arrivals*, unsigned) {}
template <typename T> __device__ __forceinline__ void send_async(T*, const T&, Arrivals*, unsigned) {}
__device__ __forceinline__ float load_from(const float* shared, unsigned) { return *shared; }
__device__ __forceinline__ unsigned load_from(const unsigned* shared, unsigned) { return *shared; }
__device__ __forceinline__ float4 load_from(const float4* shared, unsigned) { return *shared; }
__device__ __forceinline__ void wait_for_arrivals(Arrivals*, unsigned) {}
#endif

} // namespace mi_pruner::cuda
#endif

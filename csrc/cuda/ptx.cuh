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
  extern __shared__ __align__(128) unsigned char mi_pruner_shared_bytes[];                                             \
  type& name = *reinterpret_cast<type*>(mi_pruner_shared_bytes)

namespace mi_pruner::cuda {

// Copies `bytes` <= 16 from global to shared memory and zeroes the rest of the 16, asynchronously.
__device__ __forceinline__ void copy_async(void* shared, const void* global, unsigned bytes) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most `kPending` of the groups that this thread committed are still on their way.
template <int kPending> __device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8, and receives of each
// matrix the elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* shared_row) {
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

// c (16 x 8) += a (16 x 16) b (16 x 8), in the layout of mma.m16n8k16.
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Half) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Brain) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float widen(Half x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}

__device__ __forceinline__ float widen(Brain x) { return __uint_as_float(uint32_t{x.bits} << 16); }

// Hints that the cache line at `global` will be read soon.
__device__ __forceinline__ void prefetch(const void* global) { asm volatile("prefetch.global.L1 [%0];" ::"l"(global)); }

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

// What other blocks wrote before this thread saw them arrive.
__device__ __forceinline__ unsigned load_acquire(const unsigned* global) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(global) : "memory");
  return value;
}

// 16 bytes that another block wrote, past L1 and in one access.
template <typename T> __device__ __forceinline__ T load_whole(const T* global) {
  static_assert(sizeof(T) == sizeof(uint4) && alignof(T) == alignof(uint4));
  const uint4 words = __ldcg(reinterpret_cast<const uint4*>(global));
  T value;
  memcpy(&value, &words, sizeof value);
  return value;
}

__device__ __forceinline__ void wait_a_moment() { __nanosleep(20); }

} // namespace mi_pruner::cuda
#endif

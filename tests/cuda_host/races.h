// What the thread sanitizer is told, in a build for it: every fiber is a thread of its own, and a switch between fibers
// orders nothing. Memory is ordered where CUDA orders it, by `release` and `acquire` of an address; what the harness
// does itself is compiled without instrumentation. Elsewhere all of this is nothing.
#pragma once

#include <cstddef>

#ifdef MI_PRUNER_HOST_RACES
#include <sanitizer/tsan_interface.h>

extern "C" {
void __tsan_read_range(void* memory, size_t bytes);
void __tsan_write_range(void* memory, size_t bytes);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace mi_pruner::cuda::host::races {

#ifdef MI_PRUNER_HOST_RACES
constexpr bool kSeen = true;

class Thread {
public:
  void* get() const { return fiber_; }

private:
  void* fiber_ = __tsan_create_fiber(0);
};

inline void* current() { return __tsan_get_current_fiber(); }
inline void switch_to(void* thread) { __tsan_switch_to_fiber(thread, __tsan_switch_to_fiber_no_sync); }
inline void release(void* address) { __tsan_release(address); }
inline void acquire(void* address) { __tsan_acquire(address); }
inline void reads(const void* memory, size_t bytes) { __tsan_read_range(const_cast<void*>(memory), bytes); }
inline void writes(void* memory, size_t bytes) { __tsan_write_range(memory, bytes); }

// While one lives, this thread's accesses are not seen.
struct Unseen {
  Unseen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};
#else
constexpr bool kSeen = false;

struct Thread {
  void* get() const { return nullptr; }
};

inline void* current() { return nullptr; }
inline void switch_to(void*) {}
inline void release(void*) {}
inline void acquire(void*) {}
inline void reads(const void*, size_t) {}
inline void writes(void*, size_t) {}

struct Unseen {
  Unseen() {}
};
#endif

} // namespace mi_pruner::cuda::host::races

// What a block, a warp and a fiber are to the scheduler, and the stacks of the fibers.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "cuda_host.h"
#include "races.h"

namespace mi_pruner::cuda::host {

constexpr size_t kStack = 128 * 1024, kPage = 4096;
// Threads to the thread sanitizer, which knows 8,128 at most, and to which each costs half a megabyte and 2 ms. Of
// blocks of 256 threads, the 17th after a block has its places, and to it comes after it: not one of the next cluster.
constexpr size_t kSeenPlaces = 17 * 256;

struct Barrier {
  unsigned arrived = 0;
  Where where;
  std::vector<unsigned> waiting;
  unsigned opened = 0; // times
  char turns[2];       // addresses to order memory by: who comes to the next turn has not been in this one
};

struct Warp {
  Barrier barrier;
  unsigned ended = 0;
  void* slots[32];
};

struct Cluster {
  Barrier barrier;
  unsigned ended = 0;
};

struct Block {
  unsigned index, ended = 0;
  bool started = false;
  Cluster* cluster = nullptr;
  std::unique_ptr<unsigned char, decltype(&std::free)> shared{nullptr, &std::free};
  Barrier barrier;
  int votes = 0, result = 0;
  std::vector<Warp> warps;
  std::deque<unsigned> ready; // fibers
};

struct Copy {
  void* to;
  const void* from;
  unsigned bytes, group;

  void run() const;    // instructions.cpp
  void access() const; // at any time between its start and the wait for it
};

// What a fiber leaves behind for the next in its place, as long as the process lives: its stack, whose lowest page is
// never there, and its thread to the thread sanitizer.
struct Place {
  char* stack;
  races::Thread thread;
};

struct Fiber {
  void* stack_pointer;
  Block* block;
  unsigned thread;
  const Place* place;
  bool done = false;
  std::vector<Copy> copies{};                                     // on their way, oldest first
  unsigned groups = 0;                                            // committed
  std::vector<std::pair<std::function<void()>, unsigned>> work{}; // begun, oldest first, and its group
  unsigned begun = 0, work_groups = 0;                            // works; groups committed
};

class Places {
public:
  const Place* at(size_t number) {
    while (places_.size() <= number)
      places_.push_back({new_stack(), {}});
    return &places_[number];
  }

private:
  static char* new_stack() {
    void* memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    mprotect(memory, kPage, PROT_NONE);
    return static_cast<char*>(memory);
  }

  std::deque<Place> places_;
};

inline Places places;

} // namespace mi_pruner::cuda::host

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

  void run() const {
    access();
    std::memset(to, 0, 16);
    if (bytes > 0) std::memcpy(to, from, bytes);
  }

  // At any time between its start and the wait for it.
  void access() const {
    races::reads(from, bytes);
    races::writes(to, 16);
  }
};

struct Fiber {
  void* stack_pointer;
  Block* block;
  unsigned thread;
  bool done = false;
  std::vector<Copy> copies{};                                     // on their way, oldest first
  unsigned groups = 0;                                            // committed
  std::vector<std::pair<std::function<void()>, unsigned>> work{}; // begun, oldest first, and its group
  unsigned begun = 0, work_groups = 0;                            // works; groups committed
  races::Thread logical{};
};

// Stacks live as long as the process; the lowest page of each is never there.
class Stacks {
public:
  char* at(size_t number) {
    while (stacks_.size() <= number)
      stacks_.push_back(map(nullptr, 0));
    return stacks_[number];
  }

  // For a new fiber. To the thread sanitizer, what another one did on the same stack would be a race: mapped anew.
  char* fresh(size_t number) {
    char* stack = at(number);
    return races::kSeen ? map(stack, MAP_FIXED) : stack;
  }

private:
  static char* map(void* where, int flags) {
    const races::Unseen unseen;
    void* memory = mmap(where, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    mprotect(memory, kPage, PROT_NONE);
    return static_cast<char*>(memory);
  }

  std::vector<char*> stacks_;
};

inline Stacks stacks;

} // namespace mi_pruner::cuda::host

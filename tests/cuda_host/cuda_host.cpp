// Fibers, their scheduler, and the collectives; see cuda_host.h.
#include "cuda_host.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, blockDim;

// Saves the callee's registers on this stack, the stack in *from, and goes on where `to` was saved.
extern "C" void mi_pruner_switch(void** from, void* to);
asm(R"(
.text
.type mi_pruner_switch, @function
mi_pruner_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size mi_pruner_switch, . - mi_pruner_switch
)");

namespace mi_pruner::cuda::host {
namespace {

constexpr size_t kStack = 128 * 1024, kPage = 4096;

std::string last_error;

struct Barrier {
  unsigned arrived = 0;
  Where where;
  std::vector<unsigned> waiting;
};

struct Warp {
  Barrier barrier;
  unsigned ended = 0;
  void* slots[32];
};

struct Block {
  unsigned index, ended = 0;
  std::unique_ptr<unsigned char, decltype(&std::free)> shared{nullptr, &std::free};
  Barrier barrier;
  int votes = 0, result = 0;
  std::vector<Warp> warps;
};

struct Fiber {
  void* stack_pointer;
  Block* block;
  unsigned thread;
  bool done;
};

// Stacks live as long as the process; the lowest page of each is never there.
class Stacks {
public:
  char* at(size_t number) {
    while (stacks_.size() <= number) {
      void* memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED) std::abort();
      mprotect(memory, kPage, PROT_NONE);
      stacks_.push_back(static_cast<char*>(memory));
    }
    return stacks_[number];
  }

private:
  std::vector<char*> stacks_;
};

Stacks stacks;

class Grid {
public:
  Grid(unsigned threads, size_t shared, const std::function<void()>& thread)
      : threads_(threads), shared_(shared), thread_(thread) {
    const char* seed = std::getenv("MI_PRUNER_HOST_SEED");
    random_ = seed == nullptr ? 0 : std::strtoull(seed, nullptr, 10);
    random_ *= 0x9e3779b97f4a7c15u;
  }

  // Runs blocks [first, last) together; false: an error.
  bool run(unsigned first, unsigned last) {
    blocks_.clear();
    fibers_.clear();
    ready_.clear();
    for (unsigned b = first; b < last; ++b)
      add_block(b);
    idle_ = 0;
    while (!ready_.empty() && error_.empty())
      resume(next());
    if (error_.empty())
      for (const Fiber& fiber : fibers_)
        if (!fiber.done) fail("thread " + std::to_string(fiber.thread) + " waits for ever");
    return error_.empty();
  }

  const std::string& error() const { return error_; }
  Block& block() { return *fibers_[current_].block; }
  Warp& warp() { return block().warps[fibers_[current_].thread / 32]; }
  unsigned lane() const { return fibers_[current_].thread % 32; }
  unsigned threads() const { return threads_; }

  // Counts this fiber in, `ended` of `all` having ended; true for the last, which goes on, the others once it has
  // called `open`.
  bool arrive(Barrier& barrier, unsigned all, unsigned ended, const Where& where) {
    if (barrier.arrived == 0) barrier.where = where;
    if (barrier.where.line() != where.line() || std::strcmp(barrier.where.file_name(), where.file_name()) != 0)
      fail("divergent barrier: some threads wait at " + place(barrier.where) + ", others at " + place(where));
    else if (ended > 0)
      fail("divergent barrier: a thread has ended while others wait at " + place(where));
    if (!error_.empty()) leave();
    if (++barrier.arrived == all) return true;
    barrier.waiting.push_back(current_);
    leave();
    return false;
  }

  void open(Barrier& barrier) {
    idle_ = 0;
    barrier.arrived = 0;
    ready_.insert(ready_.end(), barrier.waiting.begin(), barrier.waiting.end());
    barrier.waiting.clear();
  }

  void pause() {
    if (++idle_ > 1000 * fibers_.size()) fail("all threads spin for ever");
    ready_.push_back(current_);
    leave();
  }

  void body() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &main_bottom_, &main_size_);
#endif
    thread_();
    Fiber& fiber = fibers_[current_];
    fiber.done = true;
    ++fiber.block->ended;
    ++warp().ended;
    idle_ = 0;
    if (fiber.block->barrier.arrived > 0 || warp().barrier.arrived > 0)
      fail("divergent barrier: a thread ends while others wait at " +
           place(fiber.block->barrier.arrived > 0 ? fiber.block->barrier.where : warp().barrier.where));
    leave();
  }

private:
  static std::string place(const Where& where) {
    return std::string(where.file_name()) + ":" + std::to_string(where.line());
  }

  void fail(const std::string& what) {
    if (error_.empty()) error_ = what;
  }

  void add_block(unsigned index) {
    auto block = std::make_unique<Block>();
    block->index = index;
    block->warps.resize((threads_ + 31) / 32);
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, shared_ > 0 ? shared_ : 1) != 0) std::abort();
    std::memset(memory, 0xff, shared_);
    block->shared.reset(static_cast<unsigned char*>(memory));
    for (unsigned t = 0; t < threads_; ++t) {
      char* top = stacks.at(fibers_.size()) + kStack;
      void** pointer =
          reinterpret_cast<void**>(top) - 8; // six registers, the place to go to, and no place to return to
      std::memset(pointer, 0, 8 * sizeof *pointer);
      pointer[6] = reinterpret_cast<void*>(&Grid::enter);
      ready_.push_back(static_cast<unsigned>(fibers_.size()));
      fibers_.push_back({pointer, block.get(), t, false});
    }
    blocks_.push_back(std::move(block));
  }

  static void enter();

  unsigned next() {
    size_t at = turn_;
    if (random_ != 0) {
      random_ = random_ * 6364136223846793005u + 1442695040888963407u;
      at = (random_ >> 33) % ready_.size();
      const unsigned fiber = ready_[at];
      ready_[at] = ready_.back();
      ready_.pop_back();
      return fiber;
    }
    const unsigned fiber = ready_[at];
    if (++turn_ == ready_.size()) {
      ready_.clear();
      turn_ = 0;
    } else if (turn_ > 65536) {
      ready_.erase(ready_.begin(), ready_.begin() + static_cast<long>(turn_));
      turn_ = 0;
    }
    return fiber;
  }

  void resume(unsigned fiber) {
    current_ = fiber;
    threadIdx.x = fibers_[fiber].thread;
    blockIdx.x = fibers_[fiber].block->index;
    blockDim.x = threads_;
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stacks.at(fiber), kStack);
#endif
    mi_pruner_switch(&main_stack_, fibers_[fiber].stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  // Back to the scheduler; returns when it is this fiber's turn again.
  void leave() {
    Fiber& fiber = fibers_[current_];
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(fiber.done ? nullptr : &fake, main_bottom_, main_size_);
#endif
    mi_pruner_switch(&fiber.stack_pointer, main_stack_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  const unsigned threads_;
  const size_t shared_;
  const std::function<void()>& thread_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Fiber> fibers_;
  std::vector<unsigned> ready_;
  size_t turn_ = 0, idle_ = 0;
  uint64_t random_;
  unsigned current_ = 0;
  void* main_stack_ = nullptr;
  [[maybe_unused]] const void* main_bottom_ = nullptr;
  [[maybe_unused]] size_t main_size_ = 0;
  std::string error_;
};

Grid* grid = nullptr;

void Grid::enter() { grid->body(); }

} // namespace

cudaError_t run(unsigned blocks, unsigned threads, size_t shared, bool cooperative,
                const std::function<void()>& thread) {
  Grid here(threads, shared, thread);
  grid = &here;
  bool good = true;
  if (cooperative)
    good = here.run(0, blocks);
  else
    for (unsigned b = 0; b < blocks && good; ++b)
      good = here.run(b, b + 1);
  grid = nullptr;
  if (!good) last_error = here.error();
  return good ? cudaSuccess : cudaErrorLaunchFailure;
}

void* shared_memory() { return grid->block().shared.get(); }

void wait_a_moment() { grid->pause(); }

int block_barrier(bool vote, const Where& where) {
  Block& block = grid->block();
  block.votes += vote;
  if (grid->arrive(block.barrier, grid->threads(), block.ended, where)) {
    block.result = block.votes;
    block.votes = 0;
    grid->open(block.barrier);
  }
  return block.result;
}

void warp_barrier(void* mine, const std::function<void(void* const*)>& complete, const Where& where) {
  Warp& warp = grid->warp();
  warp.slots[grid->lane()] = mine;
  if (grid->arrive(warp.barrier, 32, warp.ended, where)) {
    complete(warp.slots);
    grid->open(warp.barrier);
  }
}

} // namespace mi_pruner::cuda::host

const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorLaunchFailure) return mi_pruner::cuda::host::last_error.c_str();
  return error == cudaSuccess ? "no error" : "invalid configuration";
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  const char* blocks = std::getenv("MI_PRUNER_HOST_BLOCKS");
  *value = blocks == nullptr ? 5 : std::atoi(blocks);
  return cudaSuccess;
}

namespace mi_pruner::cuda {
namespace {

struct MatricesLane {
  const unsigned char* row;
  uint32_t to[4];
};

void load_lanes(MatricesLane* const* lanes) {
  for (int lane = 0; lane < 32; ++lane)
    for (int matrix = 0; matrix < 4; ++matrix)
      std::memcpy(&lanes[lane]->to[matrix], lanes[8 * matrix + lane / 4]->row + lane % 4 * 4, 4);
}

} // namespace

void load_matrices(uint32_t (&to)[4], const void* shared_row, const host::Where where) {
  const MatricesLane lane = host::exchange(
      MatricesLane{static_cast<const unsigned char*>(shared_row), {}},
      [](MatricesLane* const* lanes) { load_lanes(lanes); }, where);
  std::memcpy(to, lane.to, sizeof to);
}

void multiply_lanes(MatrixLane* const* lanes, float (*widened)(uint16_t)) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 8; ++i) // a0 to a7
      a[g + (i / 2 % 2) * 8][2 * t + i % 2 + i / 4 * 8] =
          widened(static_cast<uint16_t>(lanes[lane]->a[i / 2] >> (i % 2 * 16)));
    for (int i = 0; i < 4; ++i) // b0 to b3
      b[2 * t + i % 2 + i / 2 * 8][g] = widened(static_cast<uint16_t>(lanes[lane]->b[i / 2] >> (i % 2 * 16)));
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) { // c0 to c3
      double sum = lanes[lane]->c[i];
      for (int k = 0; k < 16; ++k)
        sum += static_cast<double>(a[lane / 4 + i / 2 * 8][k]) * b[k][lane % 4 * 2 + i % 2];
      lanes[lane]->c[i] = static_cast<float>(sum);
    }
}

} // namespace mi_pruner::cuda

// The scheduler: which fiber goes on next, who waits where, and what is an error.
#pragma once

#include <cstdio>
#include <string>

#include "fibers.h"

#ifdef MI_PRUNER_HOST_ADDRESSES
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the callee's registers on this stack, the stack in *from, and goes on where `to` was saved.
extern "C" void mi_pruner_switch(void** from, void* to);

namespace mi_pruner::cuda::host {

class Grid {
public:
  Grid(unsigned threads, size_t shared, unsigned cluster, const std::function<void()>& thread)
      : threads_(threads), shared_(shared), cluster_(cluster), thread_(thread) {
    const char* seed = std::getenv("MI_PRUNER_HOST_SEED");
    random_ = seed == nullptr ? 0 : std::strtoull(seed, nullptr, 10);
    random_ *= 0x9e3779b97f4a7c15u;
    seed_ = random_;
  }

  // Runs blocks [first, last) together; false: an error.
  bool run(unsigned first, unsigned last) {
    blocks_.clear();
    clusters_.clear();
    fibers_.clear();
    ready_ = 0;
    favourite_ = 0;
    for (unsigned b = first; b < last; ++b)
      add_block(b);
    idle_ = 0;
    races::release(&main_stack_);
    go_on(main_stack_);
    if (error_.empty())
      for (const Fiber& fiber : fibers_)
        if (!fiber.done) fail("thread " + std::to_string(fiber.thread) + " waits for ever");
    return error_.empty();
  }

  bool in_any_order() const { return random_ != 0; }
  const std::string& error() const { return error_; }
  Block& block() { return *fibers_[current_].block; }
  Warp& warp() { return block().warps[fibers_[current_].thread / 32]; }
  unsigned lane() const { return fibers_[current_].thread % 32; }
  unsigned threads() const { return threads_; }

  // Counts this fiber in, `ended` of `all` having ended; true for the last, which goes on, the others once it has
  // called `open`.
  bool arrive(Barrier& barrier, unsigned all, unsigned ended, const Where& where) {
    if (barrier.arrived == 0) barrier.where = where;
    if (!same(barrier.where, where))
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
    ++barrier.opened;
    barrier.arrived = 0;
    for (auto fiber = barrier.waiting.rbegin(); fiber != barrier.waiting.rend(); ++fiber)
      make_ready_first(*fiber);
    barrier.waiting.clear();
  }

  // A barrier that also orders memory; the last to come completes it.
  template <typename F>
  void meet(Barrier& barrier, unsigned all, unsigned ended, const F& complete, const Where& where) {
    char* const turn = &barrier.turns[barrier.opened % 2];
    races::release(turn);
    if (arrive(barrier, all, ended, where)) {
      complete();
      open(barrier);
    }
    races::acquire(turn);
  }

  void cluster_barrier(const Where& where) {
    Cluster& cluster = *block().cluster;
    meet(cluster.barrier, cluster_ * threads_, cluster.ended, [] {}, where);
  }

  void* in_block(void* shared, unsigned rank) {
    Block& here = block();
    const size_t first = (here.index - blocks_.front()->index) / cluster_ * cluster_;
    const Block& other = *blocks_[first + rank % cluster_];
    if (rank >= cluster_) fail("a cluster has no block " + std::to_string(rank));
    if (!other.started) fail("shared memory of a block that may not have started");
    if (other.shared == nullptr) fail("shared memory of a block that has ended");
    if (!error_.empty()) leave();
    idle_ = 0;
    return other.shared.get() + (static_cast<unsigned char*>(shared) - here.shared.get());
  }

  void copy(void* to, const void* from, unsigned bytes) {
    Fiber& fiber = fibers_[current_];
    const Copy copy{to, from, bytes, fiber.groups};
    copy.access();
    if (random_ != 0 && random(2) == 0)
      copy.run();
    else
      fiber.copies.push_back(copy);
  }

  void commit() { ++fibers_[current_].groups; }

  void finish_copies(unsigned pending) {
    Fiber& fiber = fibers_[current_];
    while (!fiber.copies.empty() && fiber.copies.front().group + pending < fiber.groups) {
      fiber.copies.front().run();
      fiber.copies.erase(fiber.copies.begin());
    }
  }

  // Collectives are among it, so all of a warp begin it at once or late; one after another, as it was begun.
  void begin(std::function<void()> work) {
    Fiber& fiber = fibers_[current_];
    // The same for all threads that have begun as much.
    const bool at_once = (seed_ * (2 * ++fiber.begun + 1) >> 40) % 2 == 1;
    fiber.work.emplace_back(std::move(work), fiber.work_groups);
    if (at_once) finish_all_work();
  }

  void commit_work() { ++fibers_[current_].work_groups; }

  void finish_work(unsigned pending) {
    const size_t own = current_;
    while (!fibers_[own].work.empty() && fibers_[own].work.front().second + pending < fibers_[own].work_groups)
      do_first_work(own);
  }

  void pause() {
    if (++idle_ > 1000 * fibers_.size()) fail("all threads spin for ever");
    make_ready(current_);
    if (random_ == 0) ++favourite_;
    leave();
  }

  // In random orders: now and then, some others go on first.
  void maybe_wait() {
    if (random_ == 0 || random(8) != 0) return;
    for (unsigned turns = 1 + random(40); turns > 0; --turns) {
      make_ready(current_);
      leave();
    }
  }

  void body() {
#ifdef MI_PRUNER_HOST_ADDRESSES
    const void* bottom = nullptr; // of who was left: at first the host
    size_t size = 0;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (main_bottom_ == nullptr) main_bottom_ = bottom, main_size_ = size;
#endif
    races::acquire(&main_stack_);
    thread_();
    Fiber& fiber = fibers_[current_];
    fiber.done = true;
    races::release(this);
    races::release(fiber.block);
    ++fiber.block->ended;
    ++fiber.block->cluster->ended;
    ++warp().ended;
    idle_ = 0;
    for (const Barrier* barrier : {&fiber.block->barrier, &warp().barrier, &fiber.block->cluster->barrier})
      if (barrier->arrived > 0) fail("divergent barrier: a thread ends while others wait at " + place(barrier->where));
    if (fiber.block->ended == threads_) {
      races::acquire(fiber.block);
      races::writes(fiber.block->shared.get(), shared_); // nobody reads it any more
      fiber.block->shared.reset();                       // others of its cluster may not use it any more
    }
    leave();
  }

private:
  void finish_all_work() {
    const size_t own = current_;
    while (!fibers_[own].work.empty())
      do_first_work(own);
  }

  void do_first_work(size_t fiber) {
    const auto work = std::move(fibers_[fiber].work.front().first);
    fibers_[fiber].work.erase(fibers_[fiber].work.begin());
    work(); // others may have their turns meanwhile
  }

  // One line of a template's instances is several barriers.
  static bool same(const Where& a, const Where& b) {
    const auto equal = [](const char* x, const char* y) { return x == y || std::strcmp(x, y) == 0; };
    return a.line() == b.line() && equal(a.file_name(), b.file_name()) && equal(a.function_name(), b.function_name());
  }

  static std::string place(const Where& where) {
    return std::string(where.file_name()) + ":" + std::to_string(where.line()) + " (" + where.function_name() + ")";
  }

  void fail(const std::string& what) {
    if (error_.empty()) error_ = what;
  }

  void add_block(unsigned index) {
    auto block = std::make_unique<Block>();
    block->index = index;
    if (blocks_.size() % cluster_ == 0) clusters_.push_back(std::make_unique<Cluster>());
    block->cluster = clusters_.back().get();
    block->warps.resize((threads_ + 31) / 32);
    void* memory = nullptr;
    if (posix_memalign(&memory, 1024, shared_ > 0 ? shared_ : 1) != 0) std::abort();
    std::memset(memory, 0xff, shared_);
    block->shared.reset(static_cast<unsigned char*>(memory));
    for (unsigned t = 0; t < threads_; ++t) {
      // Tops at different distances from a page's end: otherwise all stacks would meet in the same lines of the cache.
      // Of a stack always the same: to the address sanitizer the last frames of its former fiber are still there.
      const size_t number = fibers_.size();
      if (races::kSeen && number == kSeenPlaces) {
        std::fprintf(stderr, "more threads at a time than places: kSeenPlaces in %s\n", __FILE__);
        std::abort();
      }
      const Place* place = places.at(races::kSeen ? seen_++ % kSeenPlaces : number);
      char* top = place->stack + kStack - number * 13 % 64 * 64;
      void** pointer =
          reinterpret_cast<void**>(top) - 8; // six registers, the place to go to, and no place to return to
      std::memset(pointer, 0, 8 * sizeof *pointer);
      pointer[6] = reinterpret_cast<void*>(&Grid::enter);
      fibers_.push_back({pointer, block.get(), t, place});
      make_ready(static_cast<unsigned>(number));
    }
    blocks_.push_back(std::move(block));
  }

  static void enter();

  void make_ready(unsigned fiber) {
    fibers_[fiber].block->ready.push_back(fiber);
    ++ready_;
  }

  void make_ready_first(unsigned fiber) {
    fibers_[fiber].block->ready.push_front(fiber);
    ++ready_;
  }

  unsigned random(size_t below) {
    random_ = random_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<unsigned>((random_ >> 33) % below);
  }

  // The threads that were last to be made ready, so that a warp goes on as far as it can, and with it its block until
  // it waits for others: who looks for what others write must call wait_a_moment. Or at random, one block running ahead
  // of the others for a while.
  unsigned next() {
    --ready_;
    if (random_ != 0 && random(512) == 0) favourite_ = random(blocks_.size());
    while (blocks_[favourite_ %= blocks_.size()]->ready.empty())
      favourite_ += 1;
    std::deque<unsigned>& ready = blocks_[favourite_]->ready;
    if (random_ != 0) std::swap(ready.front(), ready[random(ready.size())]);
    const unsigned fiber = ready.front();
    ready.pop_front();
    return fiber;
  }

  // From where `own` is to be saved to the next fiber, or to the host if there is none; returns when it is its turn
  // again.
  void go_on(void*& own, [[maybe_unused]] bool ended = false) {
    void *to = main_stack_, *logical = host_;
    [[maybe_unused]] const void* bottom = main_bottom_;
    [[maybe_unused]] size_t size = main_size_;
    if (ready_ > 0 && error_.empty()) {
      current_ = next();
      Fiber& fiber = fibers_[current_];
      if (&fiber.stack_pointer == &own) return; // its own turn again
      fiber.block->started = true;
      threadIdx.x = fiber.thread;
      blockIdx.x = fiber.block->index;
      blockDim.x = threads_;
      to = fiber.stack_pointer;
      logical = fiber.place->thread.get();
      bottom = fiber.place->stack;
      size = kStack;
    }
#ifdef MI_PRUNER_HOST_ADDRESSES
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(ended ? nullptr : &fake, bottom, size);
#endif
    races::switch_to(logical);
    mi_pruner_switch(&own, to);
#ifdef MI_PRUNER_HOST_ADDRESSES
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  void leave() {
    Fiber& fiber = fibers_[current_];
    go_on(fiber.stack_pointer, fiber.done);
  }

  const unsigned threads_;
  const size_t shared_;
  const unsigned cluster_; // blocks
  const std::function<void()>& thread_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<std::unique_ptr<Cluster>> clusters_;
  std::vector<Fiber> fibers_;
  size_t seen_ = 0; // by the thread sanitizer, in the launch
  size_t ready_ = 0, favourite_ = 0, idle_ = 0;
  uint64_t random_, seed_;
  unsigned current_ = 0;
  void* const host_ = races::current();
  void* main_stack_ = nullptr;
  [[maybe_unused]] const void* main_bottom_ = nullptr;
  [[maybe_unused]] size_t main_size_ = 0;
  std::string error_;
};

} // namespace mi_pruner::cuda::host

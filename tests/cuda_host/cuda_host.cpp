// The functions of cuda_host.h, on the scheduler of grid.h.
#include "cuda_host.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include "grid.h"

dim3 threadIdx, blockIdx, blockDim;

extern "C" {
extern __attribute__((visibility("default"))) unsigned mi_pruner_host_launches; // so far, for the tests to count
unsigned mi_pruner_host_launches = 0;
__attribute__((visibility("default"))) unsigned mi_pruner_host_questions = 0;
}

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
  popq %rcx
  jmp *%rcx # a return would be guessed wrong: by the calls of the fiber that is left
.size mi_pruner_switch, . - mi_pruner_switch
)");

namespace mi_pruner::cuda::host {

static std::string last_error;
static Grid* grid = nullptr;

void Grid::enter() { grid->body(); }

// Of an environment variable.
static int64_t number(const char* variable, int64_t otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr ? otherwise : std::atoll(text);
}

cudaError_t run(unsigned blocks, unsigned threads, size_t shared, unsigned cluster,
                const std::function<void()>& thread) {
  if (blocks % cluster != 0) return cudaErrorInvalidConfiguration;
  ++mi_pruner_host_launches;
  Grid here(threads, shared, cluster, thread);
  grid = &here;
  bool good = true;
  const unsigned together =
      cluster * static_cast<unsigned>(number("MI_PRUNER_HOST_TOGETHER", here.in_any_order() ? 4 : 1));
  for (unsigned b = 0; b < blocks && good; b += together)
    good = here.run(b, std::min(b + together, blocks));
  races::acquire(&here); // of one block after another, too, only the host knows the order
  grid = nullptr;
  if (!good) last_error = here.error();
  return good ? cudaSuccess : cudaErrorLaunchFailure;
}

void* shared_memory() { return grid->block().shared.get(); }

void wait_a_moment() { grid->pause(); }
void maybe_wait() { grid->maybe_wait(); }

int device() {
  using Settings = std::tuple<int, int, bool>;
  static std::mutex mutex;
  static std::map<Settings, int> devices;
  const std::lock_guard<std::mutex> lock(mutex);
  return devices.emplace(Settings(processors(), resident_clusters(), has_groups()), devices.size()).first->second;
}
int processors() { return static_cast<int>(number("MI_PRUNER_HOST_BLOCKS", 5)); }
int resident_clusters() { return static_cast<int>(number("MI_PRUNER_HOST_CLUSTERS", 0)); }
bool has_groups() { return number("MI_PRUNER_HOST_GROUPS", 0) != 0; }
int64_t row_bytes() { return number("MI_PRUNER_HOST_ROW_BYTES", 0); }

void begin(std::function<void()> work) { grid->begin(std::move(work)); }
void commit_work() { grid->commit_work(); }
void finish_work(unsigned pending) { grid->finish_work(pending); }

void cluster_barrier(const Where& where) { grid->cluster_barrier(where); }
void* in_block(void* shared, unsigned rank) { return grid->in_block(shared, rank); }

int block_barrier(bool vote, const Where& where) {
  Block& block = grid->block();
  block.votes += vote;
  const auto count = [&] {
    block.result = block.votes;
    block.votes = 0;
  };
  grid->meet(block.barrier, grid->threads(), block.ended, count, where);
  return block.result;
}

void warp_barrier(const Where& where) {
  Warp& warp = grid->warp();
  grid->meet(warp.barrier, 32, warp.ended, [] {}, where);
}

void warp_collective(void* mine, const std::function<void(void* const*)>& complete, const Where& where) {
  Warp& warp = grid->warp();
  warp.slots[grid->lane()] = mine;
  if (grid->arrive(warp.barrier, 32, warp.ended, where)) {
    const races::Unseen unseen;
    complete(warp.slots);
    grid->open(warp.barrier);
  }
}

} // namespace mi_pruner::cuda::host

const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorLaunchFailure) return mi_pruner::cuda::host::last_error.c_str();
  return error == cudaSuccess ? "no error" : "invalid configuration";
}

namespace mi_pruner::cuda {

void copy_async(void* shared, const void* global, unsigned bytes) { host::grid->copy(shared, global, bytes); }
void commit_copies() { host::grid->commit(); }
void wait_for_copies(unsigned pending) { host::grid->finish_copies(pending); }

} // namespace mi_pruner::cuda

// Memory between the launches of one call, from PyTorch's allocator.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "new_tensor.h"

namespace mi_pruner::cuda {

// Filled part by part, then allocated: the parts' pointers are set.
class Workspace {
public:
  Workspace() { wanted_.reserve(32); } // parts, or more
  template <typename T> void add(T*& pointer, int64_t count) {
    wanted_.push_back({&pointer, count * static_cast<int64_t>(sizeof(T))});
  }

  // One allocation for all, each part at a multiple of 256 bytes.
  void allocate(const Tensor& like) {
#ifdef __SANITIZE_ADDRESS__ // an allocation each, so that the sanitizer sees where it ends
    for (const Wanted& part : wanted_) {
      memory_.push_back(new_tensor(like, {part.bytes}, ScalarType::Byte));
      part.set(memory_.back().mutable_data_ptr());
    }
#else
    int64_t total = 0;
    for (const Wanted& part : wanted_)
      total += padded(part.bytes);
    memory_.push_back(new_tensor(like, {total}, ScalarType::Byte));
    char* at = static_cast<char*>(memory_.back().mutable_data_ptr());
    for (const Wanted& part : wanted_) {
      part.set(at);
      at += padded(part.bytes);
    }
#endif
    wanted_.clear();
  }

private:
  struct Wanted {
    void* pointer; // to the pointer
    int64_t bytes;

    void set(void* memory) const { std::memcpy(pointer, &memory, sizeof memory); }
  };
  static constexpr int64_t padded(int64_t bytes) { return (bytes + 255) / 256 * 256; }

  std::vector<Wanted> wanted_;
  std::vector<Tensor> memory_;
};

} // namespace mi_pruner::cuda

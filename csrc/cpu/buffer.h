// Uninitialised memory aligned to a cache line.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace mi_pruner::cpu {

template <typename T> class Buffer {
public:
  explicit Buffer(int64_t count)
      : data_(static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T), std::align_val_t{64}))) {}
  T* get() { return data_.get(); }
  const T* get() const { return data_.get(); }
  T& operator[](int64_t i) { return data_.get()[i]; }
  const T& operator[](int64_t i) const { return data_.get()[i]; }

private:
  struct Free {
    void operator()(T* data) const { ::operator delete(data, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> data_;
};

} // namespace mi_pruner::cpu

// What the library and Python tell each other. Python's half: mi_pruner/_native.py.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <tuple>
#include <utility>

#include <torch/csrc/stable/library.h>

#include "check.h"

// As pybind11 declares it, whose translation torch's bindings have: what is thrown as this sets Python's error itself.
// Were it not known to them, it would be the RuntimeError of its message.
namespace pybind11 {
class __attribute__((visibility("default"))) builtin_exception : public std::runtime_error {
public:
  using runtime_error::runtime_error;
  virtual void set_error() const = 0;
};
} // namespace pybind11

namespace mi_pruner {

// Of the options: those of mi_pruner/_checks.py.
struct Limits {
  double min_bandwidth, max_bandwidth, max_weight;
  int64_t min_bins, max_bins;
};

const Limits& limits();

// Whether Python has left the tensors of this device to the library: its choice of a backend was this one, and nobody
// asks for another.
bool direct(const Tensor& tensor);

// Throws what a Python implementation raised in this thread, for the caller of the operator; returns where it raised
// nothing.
void rethrow();

template <typename Result> struct Unboxed {
  static Result from(const StableIValue* stack) { return torch::stable::detail::to<Result>(stack[0]); }
};
template <typename... Results> struct Unboxed<std::tuple<Results...>> {
  static std::tuple<Results...> from(const StableIValue* stack) {
    return from(stack, std::index_sequence_for<Results...>());
  }

private:
  template <size_t... kAt> static std::tuple<Results...> from(const StableIValue* stack, std::index_sequence<kAt...>) {
    return {torch::stable::detail::to<Results>(stack[kAt])...};
  }
};

// The operator's implementation in Python, by the name under which that is registered.
template <typename Result, typename... Arguments> Result in_python(const char* name, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(Arguments)> stack{torch::stable::detail::from(arguments)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
  Result result = Unboxed<Result>::from(stack.data());
  rethrow(); // beside results that hold nothing: the dispatcher would keep an exception's text alone
  return result;
}

} // namespace mi_pruner

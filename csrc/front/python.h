// What the library and Python tell each other. Python's half: mi_pruner/_native.py.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "check.h"

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

// A call of Python, as long as it lives. The operator in Python takes it over when it begins (`mi_pruner_begin`), and
// leaves an error for it. A signal's handler, or a destructor, may make a call within another.
class Asking {
public:
  struct Error; // in Python

  // Throws what Python raises before an operator can: a signal's handler, or that it has no room for more frames.
  Asking();
  ~Asking();
  Asking(const Asking&) = delete;
  Asking& operator=(const Asking&) = delete;

  static Asking* begin(); // the innermost of this thread, if that is not taken over yet; else null
  void leave(std::shared_ptr<Error> error) { error_ = std::move(error); }
  void rethrow();                           // what was left; returns where nothing was
  [[noreturn]] void fail(const char* name); // the dispatcher did, with what was left or without

private:
  Asking* const outer_;
  bool begun_ = false;
  std::shared_ptr<Error> error_;
};

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

template <typename T> StableIValue boxed(const T& argument) { return torch::stable::detail::from(argument); }
// As its bytes: of a string that goes to the dispatcher, torch before 2.14 forgets a copy.
inline StableIValue boxed(const std::string& argument) {
  const auto* const bytes = reinterpret_cast<const unsigned char*>(argument.data());
  return torch::stable::detail::from(std::vector<int64_t>(bytes, bytes + argument.size()));
}

// The operator's implementation in Python, by the name under which that is registered.
template <typename Result, typename... Arguments> Result in_python(const char* name, const Arguments&... arguments) {
  Asking asking;
  std::array<StableIValue, sizeof...(Arguments)> stack{boxed(arguments)...};
  if (torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION) != AOTI_TORCH_SUCCESS) asking.fail(name);
  Result result = Unboxed<Result>::from(stack.data());
  asking.rethrow(); // beside results that hold nothing: the dispatcher would keep no exception, but a failure
  return result;
}

} // namespace mi_pruner

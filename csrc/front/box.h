// Operators for TORCH_BOX, of functions that take strings. Of a string that it unboxes itself, torch before 2.14
// forgets a copy: 32 bytes a call, which keep the memory of whole calls apart.
#pragma once

#include <string>
#include <utility>

#include <torch/csrc/stable/library.h>

namespace mi_pruner {

template <typename T> struct Passed {
  using Type = T;
  static T take(T& argument) { return std::move(argument); }
};
template <> struct Passed<std::string> {
  using Type = StringHandle; // owned
  static std::string take(StringHandle handle) {
    size_t length = 0;
    const char* data = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    std::string text(data, length);
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};

template <auto function> struct Boxable;
template <typename Result, typename... Arguments, Result (*function)(Arguments...)> struct Boxable<function> {
  static Result call(typename Passed<Arguments>::Type... arguments) {
    return function(Passed<Arguments>::take(arguments)...);
  }
};

} // namespace mi_pruner

#define MI_PRUNER_BOX(...) TORCH_BOX((&mi_pruner::Boxable<__VA_ARGS__>::call))

#include "front/python.h"

#include <algorithm>
#include <atomic>
#include <string>

#define MI_PRUNER_EXPORT extern "C" __attribute__((visibility("default")))

namespace mi_pruner {
namespace {

// Functions of Python's stable ABI, by address: the library is not linked with Python.
struct Python {
  void (*set_error)(void* type, void* value); // PyErr_SetObject
  void (*keep)(void* object);                 // Py_IncRef
  void (*release)(void* object);              // Py_DecRef
};

struct Error {
  void *type = nullptr, *value = nullptr; // owned; null: none
  std::string text;                       // for those who catch it in C++
};

enum Device { kCpu, kCuda, kDevices };
constexpr int kIndices = 64; // what lies on a GPU beyond these is left to Python

Limits known_limits{};
Python python{};
std::atomic<bool> opened[kDevices][kIndices]{};
std::atomic<int> closed[kDevices]{}; // by so many
thread_local Error raised{};

Error take_raised() { return std::exchange(raised, {}); }

struct Raised : pybind11::builtin_exception {
  using builtin_exception::builtin_exception;
  void set_error() const override { // in the thread that threw it, which holds Python's lock
    const Error error = take_raised();
    python.set_error(error.type, error.value);
    python.release(error.type);
    python.release(error.value);
  }
};

} // namespace

const Limits& limits() { return known_limits; }

bool direct(const Tensor& tensor) {
  const int32_t type = device_type(tensor);
  const Device device = type == aoti_torch_device_type_cpu()    ? kCpu
                        : type == aoti_torch_device_type_cuda() ? kCuda
                                                                : kDevices;
  const int index = std::max(tensor.get_device_index(), 0);
  return device != kDevices && index < kIndices && opened[device][index] && closed[device] == 0;
}

void rethrow() {
  if (raised.value != nullptr) throw Raised(raised.text);
}

} // namespace mi_pruner

// For mi_pruner/_native.py, which holds Python's lock in `connect` and `raise`. Devices: 0 the CPU, 1 CUDA.

MI_PRUNER_EXPORT void mi_pruner_connect(const mi_pruner::Limits* limits, const mi_pruner::Python* python) {
  mi_pruner::known_limits = *limits;
  mi_pruner::python = *python;
}

MI_PRUNER_EXPORT void mi_pruner_open(int device, int index) {
  if (index < mi_pruner::kIndices) mi_pruner::opened[device][index] = true;
}

MI_PRUNER_EXPORT void mi_pruner_close(int device, int change) { mi_pruner::closed[device] += change; }

MI_PRUNER_EXPORT void mi_pruner_raise(void* type, void* value, const char* text) {
  using mi_pruner::python;
  const mi_pruner::Error left = mi_pruner::take_raised(); // which nobody was told of
  for (void* object : {left.type, left.value})
    if (object != nullptr) python.release(object);
  for (void* object : {type, value})
    python.keep(object);
  mi_pruner::raised = {type, value, text};
}

#include "front/python.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#define MI_PRUNER_EXPORT extern "C" __attribute__((visibility("default")))

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
namespace {

// Functions of Python's stable ABI, by address: the library is not linked with Python.
struct Python {
  void (*restore)(void* type, void* value, void* traceback); // PyErr_Restore, which takes the references over
  void (*keep)(void* object);                                // Py_IncRef
  void (*release)(void* object);                             // Py_DecRef
  int (*lock)();                                             // PyGILState_Ensure
  void (*unlock)(int state);                                 // PyGILState_Release
  int (*is_there)();                                         // Py_IsInitialized
};

enum Device { kCpu, kCuda, kDevices };
constexpr int kIndices = 64; // what lies on a GPU beyond these is left to Python

Limits known_limits{};
Python python{};
std::atomic<bool> opened[kDevices][kIndices]{};
std::atomic<int> closed[kDevices]{}; // by so many
thread_local Asking* innermost = nullptr;

} // namespace

struct Asking::Error {
  void *type, *value, *traceback; // owned
  std::string text;               // for those who catch it in C++

  Error(void* type, void* value, void* traceback, const char* text)
      : type(type), value(value), traceback(traceback), text(text) {
    keep();
  }
  ~Error() {
    if (!python.is_there()) return; // it has ended, and its objects with it
    const int state = python.lock();
    for (void* object : {type, value, traceback})
      python.release(object);
    python.unlock(state);
  }
  Error(const Error&) = delete;
  Error& operator=(const Error&) = delete;

  void keep() const {
    for (void* object : {type, value, traceback})
      python.keep(object);
  }
};

namespace {

class Raised : public pybind11::builtin_exception {
public:
  explicit Raised(std::shared_ptr<Asking::Error> error) : builtin_exception(error->text), error_(std::move(error)) {}
  void set_error() const override { // by who holds Python's lock
    error_->keep();
    python.restore(error_->type, error_->value, error_->traceback);
  }

private:
  std::shared_ptr<Asking::Error> error_;
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

Asking::Asking() : outer_(std::exchange(innermost, this)) {}
Asking::~Asking() { innermost = outer_; }

void Asking::rethrow() {
  if (error_ != nullptr) throw Raised(std::move(error_));
}

bool Asking::leave(std::shared_ptr<Error> error) {
  if (innermost == nullptr) return false;
  innermost->error_ = std::move(error);
  return true;
}

} // namespace mi_pruner

// For mi_pruner/_native.py, which holds Python's lock in all of these. Devices: 0 the CPU, 1 CUDA.

MI_PRUNER_EXPORT void mi_pruner_connect(const mi_pruner::Limits* limits, const mi_pruner::Python* python) {
  mi_pruner::known_limits = *limits;
  mi_pruner::python = *python;
}

MI_PRUNER_EXPORT void mi_pruner_open(int device, int index) {
  if (index < mi_pruner::kIndices) mi_pruner::opened[device][index] = true;
}

MI_PRUNER_EXPORT void mi_pruner_close(int device, int change) { mi_pruner::closed[device] += change; }

// 0: nobody has asked in this thread.
MI_PRUNER_EXPORT int mi_pruner_raise(void* type, void* value, void* traceback, const char* text) {
  using mi_pruner::Asking;
  return Asking::leave(std::make_shared<Asking::Error>(type, value, traceback, text));
}

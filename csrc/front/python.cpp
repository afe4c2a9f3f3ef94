#include "front/python.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#define MI_PRUNER_EXPORT extern "C" __attribute__((visibility("default")))

// Of torch 2.13 and newer: what the last exception that its C interface turned into an error code said.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

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
  void (*restore)(void* type, void* value, void* traceback);      // PyErr_Restore, which takes the references over
  void (*keep)(void* object);                                     // Py_IncRef
  void (*release)(void* object);                                  // Py_DecRef
  int (*lock)();                                                  // PyGILState_Ensure
  void (*unlock)(int state);                                      // PyGILState_Release
  int (*is_there)();                                              // Py_IsInitialized
  void* (*call)(void* callable, void* arguments);                 // PyObject_CallObject
  void (*fetch)(void** type, void** value, void** traceback);     // PyErr_Fetch
  void (*normalise)(void** type, void** value, void** traceback); // PyErr_NormalizeException
  void* (*new_capsule)(void* pointer, const char* name, void (*destructor)(void*)); // PyCapsule_New
  void* (*pointer_of)(void* capsule, const char* name);                             // PyCapsule_GetPointer
};

enum Device { kCpu, kCuda, kDevices };
constexpr int kIndices = 64; // what lies on a GPU beyond these is left to Python

Limits known_limits{};
Python python{};
void* probe = nullptr; // a function in Python that takes a few frames
std::atomic<bool> opened[kDevices][kIndices]{};
std::atomic<int> closed[kDevices]{}; // by so many
thread_local Asking* innermost = nullptr;

} // namespace

struct Asking::Error {
  void *type, *value, *traceback; // owned; the last may be null
  std::string text;               // for those who catch it in C++

  Error(void* type, void* value, void* traceback, const char* text) // which are its own from now on
      : type(type), value(value), traceback(traceback), text(text) {}
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

Asking::Asking() : outer_(innermost) {
  const int state = python.lock();
  void *const done = python.call(probe, nullptr), *type = nullptr, *value = nullptr, *traceback = nullptr;
  if (done == nullptr) {
    python.fetch(&type, &value, &traceback);
    python.normalise(&type, &value, &traceback);
    error_ = std::make_shared<Error>(type, value, traceback, "mi_pruner: Python can't be called");
  } else {
    python.release(done);
  }
  python.unlock(state);
  rethrow();
  innermost = this;
}
Asking::~Asking() { innermost = outer_; }

Asking* Asking::begin() { return innermost == nullptr || std::exchange(innermost->begun_, true) ? nullptr : innermost; }

void Asking::rethrow() {
  if (error_ != nullptr) throw Raised(std::move(error_));
}

void Asking::fail(const char* name) {
  rethrow();
  const char* const what = torch_exception_get_what_without_backtrace == nullptr
                               ? "in Python, in torch before 2.13 without its text"
                               : torch_exception_get_what_without_backtrace();
  const std::string text(what);
  throw std::runtime_error(std::string(name) + ": " + text.substr(0, text.find('\n'))); // what follows: C++'s stack
}

} // namespace mi_pruner

// For mi_pruner/_native.py, which holds Python's lock in all of these. Devices: 0 the CPU, 1 CUDA.

MI_PRUNER_EXPORT void mi_pruner_connect(const mi_pruner::Limits* limits, const mi_pruner::Python* python, void* probe) {
  mi_pruner::known_limits = *limits;
  mi_pruner::python = *python;
  python->keep(probe);
  mi_pruner::probe = probe;
}

MI_PRUNER_EXPORT void mi_pruner_open(int device, int index) {
  if (index < mi_pruner::kIndices) mi_pruner::opened[device][index] = true;
}

namespace {

void let_go(void* capsule) {
  const auto devices = reinterpret_cast<intptr_t>(mi_pruner::python.pointer_of(capsule, nullptr));
  for (int device = 0; device < mi_pruner::kDevices; ++device)
    mi_pruner::closed[device] -= devices >> device & 1;
}

} // namespace

// Closes the devices whose bits are set, as long as what it returns lives, an object of Python's: in one piece, as a
// signal's handler may raise between any two steps in Python.
MI_PRUNER_EXPORT void* mi_pruner_close(intptr_t devices) {
  void* const capsule = mi_pruner::python.new_capsule(reinterpret_cast<void*>(devices), nullptr, let_go);
  if (capsule == nullptr) return nullptr;
  for (int device = 0; device < mi_pruner::kDevices; ++device)
    mi_pruner::closed[device] += devices >> device & 1;
  return capsule;
}

MI_PRUNER_EXPORT void* mi_pruner_begin() { return mi_pruner::Asking::begin(); }

MI_PRUNER_EXPORT void mi_pruner_raise(void* asking, void* type, void* value, void* traceback, const char* text) {
  for (void* object : {type, value, traceback})
    mi_pruner::python.keep(object);
  static_cast<mi_pruner::Asking*>(asking)->leave(
      std::make_shared<mi_pruner::Asking::Error>(type, value, traceback, text));
}

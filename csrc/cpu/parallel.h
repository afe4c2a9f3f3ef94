// The one thing that the CPU backend's Torch-free code asks of its surroundings.
#pragma once

#include <cstdint>
#include <functional>

namespace mi_pruner::cpu {

// What an item takes, about, in ns on one thread: one exponential of a vector's; a row of features in a product, with
// the time to read it.
constexpr double kExponential = 1;
constexpr double product_row(int64_t dim, int64_t count) { return dim * (0.3 + count / 32.0); }

// The least work of a thread, in ns: to wake the threads costs some 10 us, and on a busy machine the wait until each is
// given a core.
constexpr double kShare = 50e3;

// body(begin, end) over parts of [0, count), on several threads where each gets kShare of work. `ns`: of an item. The
// first exception of any is thrown when all have ended.
void parallel_for(int64_t count, double ns, const std::function<void(int64_t, int64_t)>& body);

} // namespace mi_pruner::cpu

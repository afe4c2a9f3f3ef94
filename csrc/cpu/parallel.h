// The one thing that the CPU backend's Torch-free code asks of its surroundings.
#pragma once

#include <cstdint>
#include <functional>

namespace mi_pruner::cpu {

// What an item takes, about, in ns on one thread.
constexpr double kExponential = 1;                                                              // one of a vector's
constexpr double product_row(int64_t dim, int64_t count) { return dim * (0.3 + count / 32.0); } // and to read the row

// body(begin, end) over parts of [0, count), on several threads where each gets 50 us of work at the least: to wake the
// threads costs some 10 us, and on a busy machine the wait until each is given a core. `ns`: of an item. The first
// exception of any is thrown when all have ended.
constexpr double kShare = 50e3;

void parallel_for(int64_t count, double ns, const std::function<void(int64_t, int64_t)>& body);

} // namespace mi_pruner::cpu

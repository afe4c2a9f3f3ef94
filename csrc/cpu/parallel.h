// The one thing that the CPU backend's Torch-free code asks of its surroundings.
#pragma once

#include <cstdint>
#include <functional>

namespace mi_pruner::cpu {

constexpr int64_t kRowGrain = 48; // rows of D elements a thread: 8 tiles of the product

// body(begin, end) over parts of [0, count), at least `grain` long, on several threads. The first exception of any is
// thrown when all have ended.
void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

} // namespace mi_pruner::cpu

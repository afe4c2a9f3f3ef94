#include "cuda/rows.cuh"

#include <algorithm>

#include "cuda/run.cuh"

namespace mi_pruner::cuda {
namespace {

// Blocks of the kernel that the current device runs at a time.
cudaError_t resident_blocks(Dtype dtype, int64_t& blocks) {
  return by_dtype(dtype, [&](auto t) {
    int device = 0, processors = 0, each = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess)
      error = cudaFuncSetAttribute(rows_kernel<decltype(t)>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(sizeof(RowShared)));
    if (error == cudaSuccess)
      error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, rows_kernel<decltype(t)>, kTileThreads,
                                                            sizeof(RowShared));
    blocks = int64_t{processors} * std::min(each, 1); // see the launch bounds of rows_kernel
    return error;
  });
}

} // namespace

cudaError_t size_teams(Dtype dtype, int64_t samples, int64_t longest, RowMemory& memory) {
  int64_t blocks = 0;
  const cudaError_t error = resident_blocks(dtype, blocks);
  memory.tiles = ceil_div(longest, kTileColumns);
  memory.row_stride = ceil_div(longest, 4) * 4;
  memory.teams = std::max<int64_t>(1, std::min({samples, kMostTeams, blocks}));
  memory.members = std::max<int64_t>(1, std::min({blocks / memory.teams, memory.tiles, kMostMembers}));
  return error;
}

cudaError_t greedy_on_rows(Dtype dtype, const Tokens& visual, int64_t dim, const float* scores,
                           const Densities& densities, const Selection& selection, const RowMemory& memory,
                           const Picks& picks, cudaStream_t stream) {
  return by_dtype(dtype, [&](auto t) {
    return run(rows_kernel<decltype(t)>, {memory.teams * memory.members, kTileThreads, sizeof(RowShared), true}, stream,
               visual, dim, scores, densities, selection, memory, picks);
  });
}

} // namespace mi_pruner::cuda

// SPDX-License-Identifier: Apache-2.0
// The functions of src/cuda/ptx_cluster.h on the emulator, where blocks run one after the other: clusters of one.
#pragma once

#include "ptx_sm90.h"

#if GPU_EMU_WARP == 32

namespace paged::gpu {

constexpr int kMaxCluster = 1;

inline void arrive_at_cluster() {}
inline void wait_for_cluster() { __syncthreads(); }
inline void sync_cluster() { __syncthreads(); }
inline Vec<float, 4> load_from_rank(const float* shared, int) { return load_vec<float, 4>(shared); }
inline void arrive_at_rank(Barrier* barrier, int) { arrive(barrier); }
inline void load_box_everywhere(int, void* tile, const TensorMap* map, Barrier* barrier, std::uint64_t policy, int c0,
                                int c1) {
  load_box(tile, map, barrier, policy, c0, c1);
}
template <class... Params, class... Args>
void launch_clusters(int, void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared_bytes, Stream stream,
                     const Args&... args) {
  launch(kernel, grid, block, shared_bytes, stream, args...);
}

}  // namespace paged::gpu
#endif

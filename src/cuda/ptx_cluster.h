// SPDX-License-Identifier: Apache-2.0
// Clusters of blocks on Hopper, which read one another's shared memory. On the emulator (tests/gpu_emu/ptx_cluster.h) a
// cluster is one block.
#pragma once

#include <ptx_sm90.h>

namespace paged::gpu {

constexpr int kMaxCluster = 8;

// By all threads of the cluster: what they wrote before is seen by all afterwards.
__device__ __forceinline__ void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release;\n barrier.cluster.wait.acquire;" ::: "memory");
}
// What the block of that rank has at this address, 16-byte aligned.
__device__ __forceinline__ Vec<float, 4> load_from_rank(const float* shared, int rank) {
  Vec<float, 4> v;
  asm volatile(
      "{\n .reg .b32 remote;\n mapa.shared::cluster.u32 remote, %4, %5;\n ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, "
      "[remote];\n}"
      : "=f"(v.data[0]), "=f"(v.data[1]), "=f"(v.data[2]), "=f"(v.data[3])
      : "r"(shared_address(shared)), "r"(rank)
      : "memory");
  return v;
}

}  // namespace paged::gpu

// SPDX-License-Identifier: Apache-2.0
// Clusters of blocks on Hopper, which read one another's shared memory. On the emulator (tests/gpu_emu/ptx_cluster.h) a
// cluster is one block.
#pragma once

#include <ptx_sm90.h>

namespace paged::gpu {

constexpr int kMaxCluster = 8;

// By all threads of the cluster: what they wrote before they arrived is seen by all who have waited.
__device__ __forceinline__ void arrive_at_cluster() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
__device__ __forceinline__ void wait_for_cluster() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
__device__ __forceinline__ void sync_cluster() {
  arrive_at_cluster();
  wait_for_cluster();
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

// At the barrier that the block of that rank has at this address.
__device__ __forceinline__ void arrive_at_rank(Barrier* barrier, int rank) {
  asm volatile(
      "{\n .reg .b32 remote;\n mapa.shared::cluster.u32 remote, %0, %1;\n mbarrier.arrive.shared::cluster.b64 _, "
      "[remote];\n}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}
// load_box() into all blocks of a cluster of `blocks`, at the same address and counted on the same barrier of each.
__device__ __forceinline__ void load_box_everywhere(int blocks, void* tile, const TensorMap* map, Barrier* barrier,
                                                    std::uint64_t policy, int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::"
      "cache_hint [%0], [%1, {%3, %4}], [%2], %6, %5;" ::"r"(shared_address(tile)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "l"(policy),
      "h"(static_cast<std::uint16_t>((1 << blocks) - 1))
      : "memory");
}

}  // namespace paged::gpu

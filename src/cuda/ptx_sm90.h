// SPDX-License-Identifier: Apache-2.0
// Hopper's instructions, one small function each: barriers in shared memory, the Tensor Memory Accelerator (TMA), warp
// group matrix multiply (ptx_wgmma.h). tests/gpu_emu/ptx_sm90.h has CPU bodies, so that CI runs kernels built on these;
// therefore kernels include it as <ptx_sm90.h>. Needs sm_90a: bodies of kernels are to be inside #if PAGED_SM90A.
#pragma once

#include "gpu/gpu.h"
#include "ops/gpu_context.h"
#include "ptx.h"
#include "ptx_wgmma.h"
#include "tensor_map.h"

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define PAGED_SM90A 1
#else
#define PAGED_SM90A 0
#endif

namespace paged::gpu {

inline bool has_sm90(const GpuContext& gpu) { return gpu.compute_capability == 90; }

// A barrier in shared memory. A phase ends when `arrivals` threads arrived and all bytes expected in it have landed;
// then the next begins. The first phase has parity 0, and wait(barrier, 1) on a fresh barrier returns at once.
struct alignas(8) Barrier {
  std::uint64_t state;
};
// By one thread, then fence_barrier_init(), then __syncthreads().
__device__ __forceinline__ void init_barrier(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to TMA (and to a cluster).
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives, and the phase now also waits for so many bytes.
__device__ __forceinline__ void arrive_and_expect(Barrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// True once the phase of that parity has ended; may suspend the thread for a while.
__device__ __forceinline__ bool try_wait(Barrier* barrier, int parity) {
  std::uint32_t done;
  asm volatile("{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
               : "=r"(done)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
  return done != 0;
}
__device__ __forceinline__ void wait(Barrier* barrier, int parity) {
  while (!try_wait(barrier, parity)) {
  }
}
// As wait(), by one thread for what comes so often that to be woken would take longer.
__device__ __forceinline__ void spin(Barrier* barrier, int parity) {
  std::uint32_t done = 0;
  while (done == 0)
    asm volatile("{\n .reg .pred p;\n mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
}

__device__ __forceinline__ std::int64_t cycles() { return clock64(); }  // of this multiprocessor, so far

// This thread's ordinary writes to shared memory are seen by later TMA and wgmma (after a barrier, by those of others).
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Which lines L2 gives up first: createpolicy's encodings, as CUTLASS (cute/arch/copy_sm90_desc.hpp) lists them.
constexpr std::uint64_t kEvictNormal = 0x1000000000000000;
constexpr std::uint64_t kEvictFirst = 0x12F0000000000000;
constexpr std::uint64_t kEvictLast = 0x14F0000000000000;

__device__ __forceinline__ void prefetch_tensor_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// One thread starts the copy of a box whose first element has these coordinates, the innermost first. Its bytes (also
// of zeros beyond the tensor) count on the barrier. The tile is 1024-byte aligned, or 128 * rows into an aligned one
// with rows a multiple of 8.
__device__ __forceinline__ void load_box(void* tile, const TensorMap* map, Barrier* barrier, std::uint64_t policy,
                                         int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(tile)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "l"(policy)
      : "memory");
}
__device__ __forceinline__ void load_box(void* tile, const TensorMap* map, Barrier* barrier, std::uint64_t policy,
                                         int c0, int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(tile)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "l"(policy)
      : "memory");
}
__device__ __forceinline__ void load_box(void* tile, const TensorMap* map, Barrier* barrier, std::uint64_t policy,
                                         int c0, int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(shared_address(tile)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "l"(policy)
      : "memory");
}
__device__ __forceinline__ void load_box(void* tile, const TensorMap* map, Barrier* barrier, std::uint64_t policy,
                                         int c0, int c1, int c2, int c3, int c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;" ::"r"(shared_address(tile)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "l"(policy)
      : "memory");
}
// Contiguous bytes, a multiple of 16, both ends 16-byte aligned.
__device__ __forceinline__ void load_bulk(void* to_shared, const void* from, int bytes, Barrier* barrier,
                                          std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared_address(to_shared)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}

// The way back: after fence_async_proxy() and a barrier one thread stores the box, commits, and waits until at most
// `pending` of its newest groups still read shared memory.
__device__ __forceinline__ void store_box(const TensorMap* map, const void* tile, int c0, int c1) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
               "r"(shared_address(tile)), "r"(c0), "r"(c1)
               : "memory");
}
__device__ __forceinline__ void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int pending>
__device__ __forceinline__ void wait_stores_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}

// Registers move between the warp groups of a block; executed by all warps of a group. Multiples of 8 in 24..256.
template <int registers>
__device__ __forceinline__ void increase_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
__device__ __forceinline__ void decrease_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

// Barriers of `threads` threads (whole warps, arriving ones included); id 0 is __syncthreads().
__device__ __forceinline__ void sync_threads(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void arrive_threads(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// True in one lane of a whole warp.
__device__ __forceinline__ bool elect_one() {
  std::uint32_t elected;
  asm volatile("{\n .reg .pred p;\n elect.sync _|p, 0xffffffff;\n selp.u32 %0, 1, 0, p;\n}" : "=r"(elected));
  return elected != 0;
}

__device__ __forceinline__ float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace paged::gpu

// SPDX-License-Identifier: Apache-2.0
// The CUDA spelling of src/gpu/gpu.h.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <type_traits>

#include "gpu/device_error.h"

#define GPU_API(name) cuda##name
#define GPU_DYN_SHARED(type, name)                                      \
  extern __shared__ __align__(1024) unsigned char gpu_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(gpu_dynamic_shared)

namespace paged::gpu {

using Stream = cudaStream_t;

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;

inline void check(cudaError_t error, const char* what = "CUDA call") {
  if (error != cudaSuccess)
    throw DeviceError(std::string(what) + ": " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error));
}

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kFullMask, value, mask);
}
template <class T>
__device__ __forceinline__ T shuffle(T value, int lane) {
  return __shfl_sync(kFullMask, value, lane);
}
__device__ __forceinline__ std::uint64_t ballot(bool predicate) { return __ballot_sync(kFullMask, predicate); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }
__device__ __forceinline__ void thread_fence() { __threadfence(); }
template <class T>
__device__ __forceinline__ T atomic_add(T* to, T value) {
  return atomicAdd(to, value);
}
template <class T>
__device__ __forceinline__ T atomic_max(T* to, T value) {
  return atomicMax(to, value);
}
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float fast_exp(float x) { return __expf(x); }
__device__ __forceinline__ float fast_rsqrt(float x) { return rsqrtf(x); }

// A value in units of 16 or 4 bytes, each as load(address) gives it.
template <class Value, class Load>
__device__ __forceinline__ Value load_in_units(const Value* from, const Load& load) {
  using Unit = std::conditional_t<sizeof(Value) % 16 == 0, uint4, unsigned>;
  constexpr int kUnits = sizeof(Value) / sizeof(Unit);
  static_assert(kUnits * sizeof(Unit) == sizeof(Value));
  union {
    Unit units[kUnits];
    Value value;
  } loaded;
#pragma unroll
  for (int i = 0; i < kUnits; ++i) loaded.units[i] = load(reinterpret_cast<const Unit*>(from) + i);
  return loaded.value;
}
template <class Value>
__device__ __forceinline__ Value load_past_l1(const Value* from) {
  return load_in_units(from, [](const auto* unit) { return __ldcg(unit); });
}
template <class Value>
__device__ __forceinline__ Value load_from_host(const Value* from) {
  return load_in_units(from, [](const auto* unit) { return __ldcv(unit); });
}

__device__ __forceinline__ void fetch_line(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }
__device__ __forceinline__ void tell_host(std::uint32_t* to, std::uint32_t value) {
  __threadfence_system();
  *static_cast<volatile std::uint32_t*>(to) = value;
}

__device__ __forceinline__ void wait_for_predecessors() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void release_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__host__ __device__ inline float bits_to_float(std::uint32_t bits) {
  union {
    std::uint32_t u;
    float f;
  } both;
  both.u = bits;
  return both.f;
}
__host__ __device__ inline std::uint32_t float_to_bits(float value) {
  union {
    float f;
    std::uint32_t u;
  } both;
  both.f = value;
  return both.u;
}
__host__ __device__ inline float half_to_float(std::uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
__host__ __device__ inline std::uint16_t float_to_half(float value) { return __half_as_ushort(__float2half_rn(value)); }
__host__ __device__ inline std::uint16_t float_to_bfloat(float value) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

// gpu.h's launch(), in clusters of so many blocks along x. With programmatic dependent launch: the grid may start while
// its predecessor on the stream still runs.
template <class... Params, class... Args>
void launch_clusters(int cluster, void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared_bytes,
                     Stream stream, const Args&... args) {
  if (shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          "raising a kernel's shared memory");
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = static_cast<unsigned>(cluster);
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), "kernel launch");
}

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared_bytes, Stream stream,
            const Args&... args) {
  launch_clusters(1, kernel, grid, block, shared_bytes, stream, args...);
}

}  // namespace paged::gpu

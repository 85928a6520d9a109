// SPDX-License-Identifier: Apache-2.0
// The HIP spelling of src/gpu/gpu.h.
#pragma once

#include <hip/hip_runtime.h>

#include <cstdint>
#include <string>

#include "gpu/device_error.h"

#define GPU_API(name) hip##name
// CUDA's second number, blocks of a multiprocessor, would be waves of a SIMD here, and registers would spill for them.
#undef __launch_bounds__
#define __launch_bounds__(threads, ...) __attribute__((amdgpu_flat_work_group_size(1, threads)))
// As much as the widest access; more would only leave a gap after the static part.
#define GPU_DYN_SHARED(type, name)                                    \
  extern __shared__ __align__(16) unsigned char gpu_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(gpu_dynamic_shared)

namespace paged::gpu {

using Stream = hipStream_t;

#if !defined(__HIP_DEVICE_COMPILE__) || defined(__GFX8__) || defined(__GFX9__)
constexpr int kWarp = 64;
#else
constexpr int kWarp = 32;
#endif

inline void check(hipError_t error, const char* what = "HIP call") {
  if (error != hipSuccess)
    throw DeviceError(std::string(what) + ": " + hipGetErrorName(error) + ": " + hipGetErrorString(error));
}

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return __shfl_xor(value, mask, kWarp);
}
template <class T>
__device__ __forceinline__ T shuffle(T value, int lane) {
  return __shfl(value, lane, kWarp);
}
__device__ __forceinline__ std::uint64_t ballot(bool predicate) { return __ballot(predicate); }
__device__ __forceinline__ void sync_warp() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
  __builtin_amdgcn_wave_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
}
__device__ __forceinline__ void thread_fence() { __threadfence(); }
template <class T>
__device__ __forceinline__ T atomic_add(T* to, T value) {
  return atomicAdd(to, value);
}
template <class T>
__device__ __forceinline__ T atomic_max(T* to, T value) {
  return atomicMax(to, value);
}
__device__ __forceinline__ float fast_exp2(float x) { return __builtin_amdgcn_exp2f(x); }
__device__ __forceinline__ float fast_exp(float x) { return __expf(x); }
__device__ __forceinline__ float fast_rsqrt(float x) { return rsqrtf(x); }
template <class Value>
__device__ __forceinline__ Value load_past_l1(const Value* from) {
  return *from;  // no kernel runs ahead of an earlier one here
}
template <class Value>
__device__ __forceinline__ Value load_from_host(const Value* from) {
  return *from;  // page-locked memory is coherent by default: nothing caches it
}

__device__ __forceinline__ void fetch_line(const void*) {}
__device__ __forceinline__ void tell_host(std::uint32_t* to, std::uint32_t value) {
  __threadfence_system();
  *static_cast<volatile std::uint32_t*>(to) = value;
}

// Streams run their kernels one after the other.
__device__ __forceinline__ void wait_for_predecessors() {}
__device__ __forceinline__ void release_dependents() {}

__host__ __device__ inline float bits_to_float(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }
__host__ __device__ inline std::uint32_t float_to_bits(float value) { return __builtin_bit_cast(std::uint32_t, value); }
__host__ __device__ inline float half_to_float(std::uint16_t bits) {
  return static_cast<float>(__builtin_bit_cast(_Float16, bits));
}
__host__ __device__ inline std::uint16_t float_to_half(float value) {
  return __builtin_bit_cast(std::uint16_t, static_cast<_Float16>(value));
}
__host__ __device__ inline std::uint16_t float_to_bfloat(float value) {
#ifdef __HIP_DEVICE_COMPILE__
  return __builtin_bit_cast(std::uint16_t, static_cast<__bf16>(value));
#else  // a __bf16 would need a function that libgcc has from version 13 only
  const std::uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#endif
}

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared_bytes, Stream stream,
            const Args&... args) {
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Params>(args)...);
  check(hipGetLastError(), "kernel launch");
}

}  // namespace paged::gpu

// SPDX-License-Identifier: Apache-2.0
// The emulated spelling of src/gpu/gpu.h: device memory is host memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <string>

#include "emulator.h"
#include "streams.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static thread_local
#define threadIdx (gpu_emu::machine().current->thread)
#define blockIdx (gpu_emu::machine().block)
#define blockDim (gpu_emu::machine().block_dim)
#define gridDim (gpu_emu::machine().grid)
#define GPU_DYN_SHARED(type, name) type* name = reinterpret_cast<type*>(gpu_emu::machine().dynamic_shared.get())

inline void __syncthreads() { gpu_emu::wait_in(gpu_emu::State::kAtBlockBarrier, "__syncthreads"); }

namespace paged::gpu {

using Stream = void*;

constexpr int kWarp = GPU_EMU_WARP;

template <class T>
T shuffle_xor(T value, int mask) {
  return gpu_emu::exchange(value, gpu_emu::lane() ^ mask, "shuffle_xor");
}
template <class T>
T shuffle(T value, int lane) {
  return gpu_emu::exchange(value, lane, "shuffle");
}
inline std::uint64_t ballot(bool predicate) { return gpu_emu::ballot(predicate); }
inline void sync_warp() { gpu_emu::wait_in(gpu_emu::State::kAtCollective, "sync_warp"); }
inline void thread_fence() {}
template <class T>
T atomic_add(T* to, T value) {
  const T old = *to;
  *to = old + value;
  return old;
}
template <class T>
T atomic_max(T* to, T value) {
  const T old = *to;
  *to = std::max(old, value);
  return old;
}
inline float fast_exp2(float x) { return std::exp2(x); }
inline float fast_exp(float x) { return std::exp(x); }
inline float fast_rsqrt(float x) { return 1.0f / std::sqrt(x); }
template <class Value>
Value load_past_l1(const Value* from) {
  return *from;
}
template <class Value>
Value load_from_host(const Value* from) {
  return *from;
}
inline void fetch_line(const void*) {}
inline void tell_host(std::uint32_t* to, std::uint32_t value) {
  std::atomic_ref(*to).store(value, std::memory_order_release);
}
inline void wait_for_predecessors() {}
inline void release_dependents() {}

inline float bits_to_float(std::uint32_t bits) { return std::bit_cast<float>(bits); }
inline std::uint32_t float_to_bits(float value) { return std::bit_cast<std::uint32_t>(value); }

inline float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
  const std::uint32_t exponent = half >> 10 & 31, mantissa = half & 1023;
  if (exponent == 31) return bits_to_float(sign | 0x7f800000u | mantissa << 13);
  if (exponent != 0) return bits_to_float(sign | (exponent + 112) << 23 | mantissa << 13);
  const float value = static_cast<float>(mantissa) * 0x1p-24f;
  return sign != 0 ? -value : value;
}
inline std::uint16_t float_to_half(float value) {
  const std::uint32_t bits = float_to_bits(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  std::uint32_t half;
  if (size > 0x7f800000u)
    half = 0x7e00;
  else if (size >= 0x477ff000u)
    half = 0x7c00;
  else if (size < 0x38800000u)
    half = static_cast<std::uint32_t>(std::lrintf(bits_to_float(size) * 0x1p24f));
  else
    half = (size - 0x38000000u + 0xfff + (size >> 13 & 1)) >> 13;
  return static_cast<std::uint16_t>(sign | half);
}
inline std::uint16_t float_to_bfloat(float value) {
  const std::uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared_bytes, Stream stream,
            const Args&... args) {
  gpu_emu::enqueue(stream, [=, ... values = static_cast<Params>(args)] {
    gpu_emu::launch(grid, block, shared_bytes, [&] { kernel(values...); });
  });
}

}  // namespace paged::gpu

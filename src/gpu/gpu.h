// SPDX-License-Identifier: Apache-2.0
// The dialect every shared kernel is written in. Kernels here know no vendor: "spelling.h" is found on the include path
// (src/cuda, src/hip, or tests/gpu_emu, where GPU threads are fibers on the CPU) and spells the primitives:
//
//   __global__ __device__ __shared__ __launch_bounds__, threadIdx, blockIdx, blockDim, gridDim, dim3, __syncthreads()
//   kWarp                              threads of a warp, 32 or 64: device code only, never in a launch's arithmetic
//   shuffle_xor(v, mask) shuffle(v, lane) ballot(p) sync_warp()      whole-warp collectives; ballots are 64 bits
//   thread_fence()  atomic_add(p, v)  atomic_max(p, v)               device scope, relaxed
//   fast_exp2(x)  fast_exp(x)  fast_rsqrt(x)                         the hardware's approximations
//   wait_for_predecessors()            before the first access to what earlier kernels wrote or still read
//   release_dependents()               at entry: later kernels may start, up to their own wait
//   load_past_l1(p)                    4 bytes, or a multiple of 16, that are read ahead of the wait (below)
//   load_from_host(p)                  the same sizes, of page-locked host memory
//   fetch_line(p)                      a hint: the 128 bytes around p are read soon
//   tell_host(p, v)                    a word of page-locked memory: who finds it finds what was written before it
//   GPU_DYN_SHARED(type, name)         the launch's dynamic shared memory
//   launch(kernel, grid, block, shared_bytes, stream, args...)       throws DeviceError
//   GPU_API(Name)                      the runtime's function or type; check(call) throws DeviceError
//
// Rules: a launch may start while its predecessor still runs, so EVERY kernel calls wait_for_predecessors() on every
// path; block sizes are multiples of 64; collectives are executed by whole warps; no kernel assumes warp == 32 unless
// it lives in src/cuda; offsets into the KV cache and weights are 64 bits.
//
// Ahead of its wait a kernel may read weights and other constants, and what was complete before begin_step's kernel
// was: the step's inputs (positions, slots, tables, lengths) and the keys and values of earlier steps. For that kernel,
// and those that make a plan of a step, do not call release_dependents(): nothing after them starts before they end.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"
#include "gpu/device_error.h"
#include "spelling.h"

namespace paged::gpu {

// 16-bit storage types: bit patterns with explicit conversions, the same on every side.
struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

__host__ __device__ inline float to_float(float value) { return value; }
__host__ __device__ inline float to_float(BFloat16 value) {
  return bits_to_float(static_cast<std::uint32_t>(value.bits) << 16);
}
__host__ __device__ inline float to_float(Float16 value) { return half_to_float(value.bits); }

template <class T>
__host__ __device__ inline T from_float(float value);
template <>
__host__ __device__ inline float from_float<float>(float value) {
  return value;
}
template <>
__host__ __device__ inline BFloat16 from_float<BFloat16>(float value) {
  return {float_to_bfloat(value)};
}
template <>
__host__ __device__ inline Float16 from_float<Float16>(float value) {
  return {float_to_half(value)};
}

// Moves as one access of up to 16 bytes.
template <class T, int N>
struct alignas(sizeof(T) * N <= 16 ? sizeof(T) * N : 16) Vec {
  T data[N];
};

template <class T, int N>
__device__ __forceinline__ Vec<T, N> load_vec(const T* from) {
  return *reinterpret_cast<const Vec<T, N>*>(from);
}
template <class T, int N>
__device__ __forceinline__ void store_vec(T* to, const Vec<T, N>& value) {
  *reinterpret_cast<Vec<T, N>*>(to) = value;
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask >>= 1) value += shuffle_xor(value, mask);
  return value;
}
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask >>= 1) value = fmaxf(value, shuffle_xor(value, mask));
  return value;
}

// Calls fn with a value of the storage type that dtype names.
template <class Fn>
void with_type(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::kFloat32: return fn(float{});
    case DType::kBFloat16: return fn(BFloat16{});
    case DType::kFloat16: return fn(Float16{});
    case DType::kInt8: break;  // ops.h lets none through
  }
}

}  // namespace paged::gpu

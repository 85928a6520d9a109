// SPDX-License-Identifier: Apache-2.0
// What the tests of GPU ops share. They use the ops' public face and gpu/runtime.h only, so the same sources run on the
// emulator (in CI), on NVIDIA and on AMD; the CPU backend is the oracle.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "../cpp/check.h"
#include "cpu/thread_pool.h"
#include "gpu/runtime.h"
#include "ops/gpu_ops.h"
#include "ops/ops.h"

namespace paged::test {

// The emulator's threads switch slowly under a sanitizer that follows their stacks.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kHasSlowThreads = true;
#else
constexpr bool kHasSlowThreads = false;
#endif

inline std::uint16_t to_bfloat16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float from_bfloat16(std::uint16_t half) {
  const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
// Without _Float16, which clang has on some processors only.
inline std::uint16_t to_float16(float value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return sign | 0x7e00;
  if (std::abs(value) >= 65520.0f) return sign | 0x7c00;
  // In units of the last of ten bits after the point, at the least the smallest denormal; a carry moves the exponent.
  const int exponent = value == 0 ? -14 : std::max(std::ilogb(value), -14);
  const int units = static_cast<int>(std::nearbyint(std::ldexp(std::abs(value), 10 - exponent)));
  return static_cast<std::uint16_t>(sign | ((exponent + 14) * 1024 + units));
}
inline float from_float16(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                              : std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
  if (exponent == 31) value = mantissa == 0 ? INFINITY : NAN;
  return (bits & 0x8000) != 0 ? -value : value;
}

// A value rounded to dtype.
inline float rounded(float value, DType dtype) {
  if (dtype == DType::kBFloat16) return from_bfloat16(to_bfloat16(value));
  if (dtype == DType::kFloat16) return from_float16(to_float16(value));
  return value;
}

// Elements of dtype as bytes, and back.
inline std::vector<std::byte> encode(std::span<const float> values, DType dtype) {
  std::vector<std::byte> bytes(values.size() * static_cast<std::size_t>(size_of(dtype)));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kFloat32) {
      std::memcpy(bytes.data() + 4 * i, &values[i], 4);
      continue;
    }
    const std::uint16_t half = dtype == DType::kBFloat16 ? to_bfloat16(values[i]) : to_float16(values[i]);
    std::memcpy(bytes.data() + 2 * i, &half, 2);
  }
  return bytes;
}
inline std::vector<float> decode(std::span<const std::byte> bytes, DType dtype) {
  std::vector<float> values(bytes.size() / static_cast<std::size_t>(size_of(dtype)));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kFloat32) {
      std::memcpy(&values[i], bytes.data() + 4 * i, 4);
      continue;
    }
    std::uint16_t half;
    std::memcpy(&half, bytes.data() + 2 * i, 2);
    values[i] = dtype == DType::kBFloat16 ? from_bfloat16(half) : from_float16(half);
  }
  return values;
}

class Random {
 public:
  explicit Random(unsigned seed = 11) : engine_(seed) {}
  // Normally distributed, exact in dtype.
  std::vector<float> floats(std::int64_t count, DType dtype = DType::kFloat32, float scale = 1.0f) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = rounded(scale * normal_(engine_), dtype);
    return values;
  }
  int below(int limit) { return static_cast<int>(engine_() % static_cast<unsigned>(limit)); }

 private:
  std::mt19937 engine_;
  std::normal_distribution<float> normal_;
};

// One device, one stream, the scratch that ops share.
struct Gpu {
  Gpu() : scratch(GpuContext::kScratchBytes), counters(GpuContext::kCounters * 4) {
    gpu::use_device(0);
    const gpu::DeviceProperties properties = gpu::device_properties(0);
    gpu.stream = stream.handle();
    gpu.compute_capability = properties.compute_capability;
    gpu.num_multiprocessors = properties.num_multiprocessors;
    gpu.scratch = scratch.data();
    gpu.scratch_bytes = scratch.num_bytes();
    gpu.counters = reinterpret_cast<std::uint32_t*>(counters.data());
    gpu::fill_zero(counters.data(), counters.num_bytes(), gpu.stream);
    gpu::synchronize(gpu.stream);
  }
  ExecutionContext context() { return {Device::kGpu, &threads, &gpu}; }
  ExecutionContext cpu() { return {Device::kCpu, &threads, nullptr}; }

  gpu::OwnedStream stream;
  gpu::DeviceBuffer scratch, counters;
  ThreadPool threads{2};
  GpuContext gpu;
};

// Elements on the device. Fresh ones are poisoned with 0xff bytes: NaN.
class OnDevice {
 public:
  OnDevice(Gpu& gpu, std::span<const std::byte> bytes) : gpu_(&gpu), buffer_(static_cast<std::int64_t>(bytes.size())) {
    gpu::copy_to_device(buffer_.data(), bytes.data(), buffer_.num_bytes(), gpu.gpu.stream);
    gpu::synchronize(gpu.gpu.stream);
  }
  OnDevice(Gpu& gpu, std::span<const float> values, DType dtype = DType::kFloat32)
      : OnDevice(gpu, encode(values, dtype)) {}
  OnDevice(Gpu& gpu, std::span<const std::int32_t> values) : OnDevice(gpu, std::as_bytes(values)) {}
  static OnDevice poisoned(Gpu& gpu, std::int64_t num_bytes) {
    return {gpu, std::vector<std::byte>(static_cast<std::size_t>(num_bytes), std::byte{0xff})};
  }

  std::byte* data() const { return buffer_.data(); }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(buffer_.data());
  }
  std::vector<std::byte> bytes() const {
    std::vector<std::byte> out(static_cast<std::size_t>(buffer_.num_bytes()));
    gpu::synchronize(gpu_->gpu.stream);
    gpu::copy_to_host(out.data(), buffer_.data(), buffer_.num_bytes(), gpu_->gpu.stream);
    gpu::synchronize(gpu_->gpu.stream);
    return out;
  }
  std::vector<float> floats(DType dtype = DType::kFloat32) const { return decode(bytes(), dtype); }
  std::vector<std::int32_t> ints() const {
    const std::vector<std::byte> raw = bytes();
    std::vector<std::int32_t> out(raw.size() / 4);
    std::memcpy(out.data(), raw.data(), raw.size());
    return out;
  }

 private:
  Gpu* gpu_;
  gpu::DeviceBuffer buffer_;
};

// The relative tolerance that rounding to dtype leaves.
inline double tolerance_of(DType dtype) {
  return dtype == DType::kFloat32 ? 2e-5 : dtype == DType::kBFloat16 ? 1.2e-2 : 2e-3;
}

// Element by element, |a - b| <= tolerance * (1 + |b|); NaN never passes.
inline void check_close(std::span<const float> values, std::span<const float> expected, double tolerance,
                        const char* what = "") {
  CHECK_EQ(values.size(), expected.size(), what);
  for (std::size_t i = 0; i < values.size(); ++i)
    CHECK(std::abs(double{values[i]} - double{expected[i]}) <= tolerance * (1.0 + std::abs(double{expected[i]})), what,
          " element ", i, " is ", values[i], ", expected ", expected[i]);
}

}  // namespace paged::test

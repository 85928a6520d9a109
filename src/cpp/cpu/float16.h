// SPDX-License-Identifier: Apache-2.0
// Storage types of 16-bit floats and their scalar conversions: round to nearest even, NaN stays NaN.
#pragma once

#include <bit>
#include <cstdint>

#include "cpu/inline.h"

namespace paged::cpu {

struct BFloat16 {
  std::uint16_t bits;
};

struct Float16 {
  std::uint16_t bits;
};

PAGED_INLINE float to_float(float x) { return x; }

PAGED_INLINE float to_float(BFloat16 x) { return __builtin_bit_cast(float, std::uint32_t{x.bits} << 16); }

PAGED_INLINE float to_float(Float16 x) {
  const std::uint32_t sign = std::uint32_t{x.bits & 0x8000u} << 16;
  std::uint32_t bits = std::uint32_t{x.bits & 0x7fffu} << 13;
  const std::uint32_t exponent = bits & 0x0f800000u;
  bits += (127 - 15) << 23;
  if (exponent == 0x0f800000u) bits += (128 - 16) << 23;  // infinity and NaN
  if (exponent == 0) {                                    // zero and subnormal: renormalise through a subtraction
    const float magic = __builtin_bit_cast(float, 113u << 23);
    bits = __builtin_bit_cast(std::uint32_t, __builtin_bit_cast(float, bits + (1u << 23)) - magic);
  }
  return __builtin_bit_cast(float, bits | sign);
}

template <typename T>
PAGED_INLINE T from_float(float x);

template <>
PAGED_INLINE float from_float<float>(float x) {
  return x;
}

template <>
PAGED_INLINE BFloat16 from_float<BFloat16>(float x) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
PAGED_INLINE Float16 from_float<Float16>(float x) {
  std::uint32_t bits = __builtin_bit_cast(std::uint32_t, x);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
  if (bits >= 0x47800000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};  // beyond the largest: infinity
  if (bits < 0x38800000u) {                                                      // subnormal: let the adder round
    const float magic = __builtin_bit_cast(float, 126u << 23);
    const float sum = __builtin_bit_cast(float, bits) + magic;
    return {static_cast<std::uint16_t>(sign | (__builtin_bit_cast(std::uint32_t, sum) - (126u << 23)))};
  }
  const std::uint32_t odd = (bits >> 13) & 1u;
  bits += 0xc8000fffu + odd;  // rebias the exponent by 15 - 127 and round
  return {static_cast<std::uint16_t>(sign | (bits >> 13))};
}

}  // namespace paged::cpu

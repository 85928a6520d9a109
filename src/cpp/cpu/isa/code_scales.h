// SPDX-License-Identifier: Apache-2.0
// What decides the scale of a group of codes of x (cpu/quantised_rows.h), the same on every instruction set.
#pragma once

#include <cstdint>

#include "cpu/isa/rows.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

inline constexpr float kLargestFloat = 3.402823466e38f;  // finite
// Of a group's largest: times any scale of weights it is far from denormal. A group of less is zero.
inline constexpr float kSmallestFloat = 1e-20f;
inline constexpr float kCoarseCodes = 127;  // of a coarse group's largest, before it is multiplied by kCoarseUnit
inline constexpr int kCoarseBits = 8;
inline constexpr float kCoarseUnit = 1 << kCoarseBits;
// The largest of a coarse group, as a multiple of its row's root mean square.
inline constexpr float kMostCoarse = 4;

// The largest square of a value of a coarse group. Of a row in float32 no group is coarse.
template <typename T>
PAGED_INLINE float most_square(const T* x, std::int64_t cols) {
  if constexpr (sizeof(T) == sizeof(float)) return -1.0f;
  F32 squares = zero();
  for (std::int64_t k = 0; k < cols; k += 16) squares = squares + load(x + k) * load(x + k);
  return reduce_add(squares) * (kMostCoarse * kMostCoarse) / static_cast<float>(cols);
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

// SPDX-License-Identifier: Apache-2.0
// Rows of x as bytes: groups of 32 k share a scale, x = code * scale with codes in [-127, 127], rounded to nearest
// even. A group that holds a NaN or an infinity has a NaN for its scale. The same bits on every instruction set.
#pragma once

#include "cpu/isa/byte_dot.h"
#include "cpu/isa/rows.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

inline constexpr int kByteGroup = 32;

struct ByteGroup {
  float scale;
  float scaled_sum;      // scale * the sum of the codes
  std::int32_t sums[2];  // of the codes of each half
};

PAGED_INLINE std::int32_t sum_of(I32 codes) { return static_cast<std::int32_t>(reduce_add(int_to_float(codes))); }

// 32 values.
PAGED_INLINE void quantise_group(F32 low, F32 high, std::int8_t* codes, ByteGroup& group) {
  constexpr float kSmallest = 1e-30f;  // whose reciprocal is far from infinity; less counts as zero
  const F32 magnitude = max(max(low, zero() - low), max(high, zero() - high));
  // max may lose a NaN; this is 0 for what is finite and NaN for all else.
  const float largest = reduce_max(magnitude) + reduce_add((low - low) + (high - high));
  const bool is_zero = largest < kSmallest;
  const F32 inverse = set1(is_zero ? 0.0f : 127.0f / largest);
  const I32 a = round_to_int(low * inverse), b = round_to_int(high * inverse);
  store_codes(codes, a);
  store_codes(codes + 16, b);
  group.scale = is_zero ? 0.0f : largest * (1.0f / 127.0f);
  group.sums[0] = sum_of(a);
  group.sums[1] = sum_of(b);
  group.scaled_sum = group.scale * static_cast<float>(group.sums[0] + group.sums[1]);
}

// count: a multiple of kByteGroup.
template <typename T>
PAGED_INLINE void quantise_row(const T* x, int count, std::int8_t* codes, ByteGroup* groups) {
  for (int k = 0; k < count; k += kByteGroup)
    quantise_group(load(x + k), load(x + k + 16), codes + k, groups[k / kByteGroup]);
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

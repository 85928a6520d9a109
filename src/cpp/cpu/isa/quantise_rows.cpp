// SPDX-License-Identifier: Apache-2.0
#include "cpu/isa/code_scales.h"
#include "cpu/isa/code_tiles.h"
#include "cpu/isa/integer_dot.h"
#include "cpu/isa/kernels.h"
#include "cpu/isa/rows.h"
#include "cpu/quantised_rows.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {
namespace {

PAGED_INLINE std::int32_t sum_of(I32 codes) { return static_cast<std::int32_t>(reduce_add(int_to_float(codes))); }

PAGED_INLINE float power_of_two(std::uint32_t biased) {
  const std::uint32_t bits = biased << 23;
  float power;
  __builtin_memcpy(&power, &bits, sizeof(power));
  return power;
}

// The biased exponent of `largest`, or one more if its code would be above 127 * 256.
PAGED_INLINE std::uint32_t exponent_of(float largest) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &largest, sizeof(bits));
  return (bits + 0x1ffff) >> 23;
}

// 32 values; the square of the largest of a coarse group is at most `most`.
PAGED_INLINE void quantise_group(F32 low, F32 high, bool halves, float most, CodeGroup& group) {
  const F32 low_size = max(low, zero() - low), high_size = max(high, zero() - high), limit = set1(kLargestFloat);
  const bool finite = (mask_ge(limit, low_size) & mask_ge(limit, high_size)) == 0xffff;  // a NaN is no less than it
  float largest = finite ? reduce_max(max(low_size, high_size)) : 0.0f;
  group.is_fine = largest * largest > most ? 1 : 0;
  if (largest < kSmallestFloat) low = high = zero(), largest = 1.0f;
  float scale;
  I32 a, b;
  if (group.is_fine != 0) {
    const std::uint32_t exponent = exponent_of(largest);
    const F32 inverse = set1(power_of_two(268 - exponent));  // largest * inverse is below 2^15
    a = round_to_int(low * inverse), b = round_to_int(high * inverse);
    scale = power_of_two(exponent - 14);
  } else {
    const F32 inverse = set1(kCoarseCodes / largest);
    a = shift_left<kCoarseBits>(round_to_int(low * inverse));
    b = shift_left<kCoarseBits>(round_to_int(high * inverse));
    scale = largest / (kCoarseCodes * kCoarseUnit);
  }
  group.scale = finite ? scale : __builtin_nanf("");
  CodesDot::store_codes(group.codes, a);
  CodesDot::store_codes(group.codes + kCodeGroup, b);
  group.minus_sum = -sum_of(a + b);
  if (halves) group.minus_first_sum = -sum_of(a);
  group.scaled_sum = group.scale * static_cast<float>(-group.minus_sum);
}

template <typename T>
void quantise_row(const T* x, const QuantisedRows& rows, CodeGroup* to) {
  const float most = most_square(x, rows.cols);
  for (std::int64_t k = 0; k < rows.cols; k += kCodeGroup, ++to)
    quantise_group(load(x + k), load(x + k + 16), rows.halves, most, *to);
}

}  // namespace

void quantise_rows(const MatrixView& x, const QuantisedRows& to, std::int64_t row_begin, std::int64_t row_end) {
  with_type(x.dtype, [&](auto tag) {
    using T = decltype(tag);
    if constexpr (kHasTiles)
      if (to.layout == CodeLayout::kTiles) return code_tiles<T>(x, to, row_begin, row_end);
    for (std::int64_t row = row_begin; row < row_end; ++row) quantise_row(row_of<const T>(x, row), to, to.row(row));
  });
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

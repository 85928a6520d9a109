// SPDX-License-Identifier: Apache-2.0
#include "cpu/isa/integer_dot.h"
#include "cpu/isa/kernels.h"
#include "cpu/isa/rows.h"
#include "cpu/quantised_rows.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {
namespace {

constexpr float kSmallest = 1e-30f;  // of a group's largest, whose scale is far from denormal; less counts as zero

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

// 32 values.
PAGED_INLINE void quantise_group(F32 low, F32 high, std::byte* codes, CodeGroup& group) {
  const F32 magnitude = max(max(low, zero() - low), max(high, zero() - high));
  // max may lose a NaN; this is 0 for what is finite and NaN for all else.
  const float invalid = reduce_add((low - low) + (high - high));
  const float largest = reduce_max(magnitude);
  const bool some = largest >= kSmallest && invalid == 0.0f;
  const std::uint32_t exponent = some ? exponent_of(largest) : 127;
  const F32 inverse = set1(power_of_two(268 - exponent));  // largest * inverse is below 2^15
  if (!some) low = high = zero();
  const I32 a = round_to_int(low * inverse), b = round_to_int(high * inverse);
  store_codes(codes, a);
  store_codes(codes + 32, b);
  group.scale = some ? power_of_two(exponent - 14) : invalid;
  group.sums[0] = sum_of(a);
  group.sums[1] = sum_of(b);
  group.scaled_sum = group.scale * static_cast<float>(group.sums[0] + group.sums[1]);
}

}  // namespace

void quantise_rows(const MatrixView& x, const QuantisedRows& to, std::int64_t row_begin, std::int64_t row_end) {
  with_type(x.dtype, [&](auto tag) {
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      const auto* from = row_of<const decltype(tag)>(x, row);
      std::byte* codes = to.codes + (row - to.first_row) * to.code_stride();
      CodeGroup* groups = to.groups + (row - to.first_row) * to.group_stride();
      for (std::int64_t k = 0; k < to.cols; k += kCodeGroup)
        quantise_group(load(from + k), load(from + k + 16), codes + 2 * k, groups[k / kCodeGroup]);
    }
  });
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

// SPDX-License-Identifier: Apache-2.0
#include "cpu/isa/integer_dot.h"
#include "cpu/isa/kernels.h"
#include "cpu/isa/rows.h"
#include "cpu/isa/tiles.h"
#include "cpu/quantised_rows.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {
namespace {

constexpr float kLargest = 3.402823466e38f;  // finite float
constexpr float kSmallest =
    1e-20f;  // of a group's largest; times any scale of weights it is far from denormal. Less is zero

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

// Codes of 32 values; what they are times of is a power of two, or NaN.
struct Coded {
  I32 first, second;
  float scale;
};

PAGED_INLINE Coded code_group(F32 low, F32 high) {
  const F32 low_size = max(low, zero() - low), high_size = max(high, zero() - high), limit = set1(kLargest);
  const bool finite = (mask_ge(limit, low_size) & mask_ge(limit, high_size)) == 0xffff;  // a NaN is no less than it
  const float largest = finite ? reduce_max(max(low_size, high_size)) : 0.0f;
  if (largest < kSmallest) low = high = zero();
  const std::uint32_t exponent = largest < kSmallest ? 127 : exponent_of(largest);
  const F32 inverse = set1(power_of_two(268 - exponent));  // largest * inverse is below 2^15
  return {round_to_int(low * inverse), round_to_int(high * inverse),
          finite ? power_of_two(exponent - 14) : __builtin_nanf("")};
}

PAGED_INLINE void store_group(const Coded& coded, std::byte* codes, CodeGroup& group) {
  store_codes(codes, coded.first);
  store_codes(codes + 32, coded.second);
  group.scale = coded.scale;
  group.sums[0] = sum_of(coded.first);
  group.sums[1] = sum_of(coded.second);
  group.scaled_sum = group.scale * static_cast<float>(group.sums[0] + group.sums[1]);
}

// The same for row `row` of a tile.
PAGED_INLINE void store_in_tile(const Coded& coded, CodeTile& tile, int row) {
  const F32 scale = set1(coded.scale), large_scale = set1(256.0f * coded.scale);
  const auto high_of = [](I32 codes) { return shift_right_signed<8>(codes + set1_word(128)); };
  const I32 first = high_of(coded.first), second = high_of(coded.second);
  store_rounded(tile.high[row], int_to_float(first) * large_scale, int_to_float(second) * large_scale);
  store_rounded(tile.low[row], int_to_float(coded.first - shift_left<8>(first)) * scale,
                int_to_float(coded.second - shift_left<8>(second)) * scale);
  tile.scaled_sums[row] = coded.scale * reduce_add(int_to_float(coded.first) + int_to_float(coded.second));
}

template <typename T>
void code_row(const T* x, std::int64_t row, const QuantisedRows& to) {
  for (std::int64_t k = 0; k < to.cols; k += kCodeGroup) {
    const Coded coded = code_group(load(x + k), load(x + k + 16));
    if constexpr (kHasTiles) {
      if (to.tiled) {
        store_in_tile(coded, to.tiles()[row / 16 * to.group_stride() + k / kCodeGroup], static_cast<int>(row % 16));
        continue;
      }
    }
    store_group(coded, to.codes + row * to.code_stride() + 2 * k, to.groups[row * to.group_stride() + k / kCodeGroup]);
  }
}

}  // namespace

void quantise_rows(const MatrixView& x, const QuantisedRows& to, std::int64_t row_begin, std::int64_t row_end) {
  with_type(x.dtype, [&](auto tag) {
    for (std::int64_t row = row_begin; row < row_end; ++row)
      code_row(row_of<const decltype(tag)>(x, row), row - to.first_row, to);
  });
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

// SPDX-License-Identifier: Apache-2.0
// Decoders of the packed formats: eight consecutive k of a panel's 16 rows as float32 vectors. scales() is called once
// per kGroup, decode() for every eighth k; both give the values unpack_row gives, bit for bit.
#pragma once

#include "cpu/isa/vec.h"
#include "cpu/packed_matrix.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

struct NoScale {};

template <typename T>
struct FloatFormat {
  static constexpr int kGroup = 8;
  using Scale = NoScale;
  PAGED_INLINE static Scale scales(const std::byte*, std::int64_t) { return {}; }
  PAGED_INLINE static void decode(const std::byte* panel, std::int64_t k, Scale, F32 (&w)[8]) {
    const T* at = reinterpret_cast<const T*>(panel) + k * kPanelRows;
    for (int i = 0; i < 8; ++i) w[i] = load(at + i * kPanelRows);
  }
};

struct PairFormat {
  static constexpr int kGroup = 8;
  using Scale = NoScale;
  PAGED_INLINE static Scale scales(const std::byte*, std::int64_t) { return {}; }
  PAGED_INLINE static void decode(const std::byte* panel, std::int64_t k, Scale, F32 (&w)[8]) {
    for (int i = 0; i < 4; ++i) {
      const I32 words = load_words(panel + (k / 2 + i) * 64);
      w[2 * i] = even_bf16(words);
      w[2 * i + 1] = odd_bf16(words);
    }
  }
};

struct ScaleAndMin {
  F32 scale;
  F32 min;
};

template <QuantLayout kLayout>
struct QuantFormat {
  static constexpr int kGroup = kLayout.group_k;
  static constexpr bool kHasMin = kLayout.has_min || kLayout.zero != 0;
  using Scale = ScaleAndMin;

  PAGED_INLINE static const std::byte* block_of(const std::byte* panel, std::int64_t k) {
    return panel + k / kLayout.block_k * kLayout.block_bytes();
  }

  PAGED_INLINE static F32 group_bytes(const std::byte* block, int offset, int group) {
    return load(reinterpret_cast<const std::int8_t*>(block) + offset + group * kPanelRows);
  }

  PAGED_INLINE static Scale scales(const std::byte* panel, std::int64_t k) {
    const std::byte* block = block_of(panel, k);
    const int group = static_cast<int>(k % kLayout.block_k) / kLayout.group_k;
    Scale s{load(reinterpret_cast<const Float16*>(block)), zero()};
    if constexpr (kLayout.has_min) s.min = load(reinterpret_cast<const Float16*>(block) + kPanelRows);
    if constexpr (kLayout.sub_scaled) {
      s.scale = s.scale * group_bytes(block, kLayout.scales_offset(), group);
      if constexpr (kLayout.has_min) s.min = zero() - s.min * group_bytes(block, kLayout.mins_offset(), group);
    }
    if constexpr (kLayout.zero != 0) s.min = s.scale * set1(static_cast<float>(-kLayout.zero));
    return s;
  }

  // A product of code and scale is exact, so fma rounds once, where the reference rounds: in the addition.
  PAGED_INLINE static F32 weight(F32 code, Scale s) {
    if constexpr (kHasMin) return fma(code, s.scale, s.min);
    return code * s.scale;
  }

  template <int kByte>
  PAGED_INLINE static F32 byte_of(I32 words) {
    if constexpr (kLayout.is_signed) return int_to_float(shift_right_signed<24>(shift_left<24 - 8 * kByte>(words)));
    return int_to_float(shift_right<24>(shift_left<24 - 8 * kByte>(words)));
  }

  PAGED_INLINE static void decode(const std::byte* panel, std::int64_t k, Scale s, F32 (&w)[8]) {
    const std::byte* codes = block_of(panel, k) + kLayout.codes_offset();
    const int in_block = static_cast<int>(k % kLayout.block_k);
    if constexpr (kLayout.bits == 4) {
      const I32 words = load_words(codes + in_block / 8 * 64);
      w[0] = weight(nibble_to_float<0>(words), s), w[1] = weight(nibble_to_float<8>(words), s);
      w[2] = weight(nibble_to_float<16>(words), s), w[3] = weight(nibble_to_float<24>(words), s);
      w[4] = weight(nibble_to_float<4>(words), s), w[5] = weight(nibble_to_float<12>(words), s);
      w[6] = weight(nibble_to_float<20>(words), s), w[7] = weight(nibble_to_float<28>(words), s);
    } else {
      const I32 low = load_words(codes + in_block / 4 * 64);
      const I32 high = load_words(codes + in_block / 4 * 64 + 64);
      w[0] = weight(byte_of<0>(low), s), w[1] = weight(byte_of<1>(low), s);
      w[2] = weight(byte_of<2>(low), s), w[3] = weight(byte_of<3>(low), s);
      w[4] = weight(byte_of<0>(high), s), w[5] = weight(byte_of<1>(high), s);
      w[6] = weight(byte_of<2>(high), s), w[7] = weight(byte_of<3>(high), s);
    }
  }
};

// Calls body(Format{}) with the decoder of a packed format.
template <typename Body>
PAGED_INLINE void with_format(PackedFormat format, Body body) {
  switch (format) {
    case PackedFormat::kFloat32: body(FloatFormat<float>{}); return;
    case PackedFormat::kFloat16: body(FloatFormat<Float16>{}); return;
    case PackedFormat::kBFloat16: body(PairFormat{}); return;
    case PackedFormat::kQ8: body(QuantFormat<kQ8Layout>{}); return;
    case PackedFormat::kQ8Min: body(QuantFormat<kQ8MinLayout>{}); return;
    case PackedFormat::kQ4: body(QuantFormat<kQ4Layout>{}); return;
    case PackedFormat::kQ4Min: body(QuantFormat<kQ4MinLayout>{}); return;
    case PackedFormat::kQ4K: body(QuantFormat<kQ4KLayout>{}); return;
    case PackedFormat::kQ5K: body(QuantFormat<kQ5KLayout>{}); return;
    case PackedFormat::kQ6K: body(QuantFormat<kQ6KLayout>{}); return;
  }
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

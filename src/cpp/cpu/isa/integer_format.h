// SPDX-License-Identifier: Apache-2.0
// Where the scales, minima and codes of a packed quantised format lie, read as products in integers want them.
#pragma once

#include "cpu/isa/integer_dot.h"
#include "cpu/packed_matrix.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

template <QuantLayout kTheLayout>
struct Format {
  static constexpr QuantLayout kLayout = kTheLayout;
  static constexpr int kGroup = kLayout.group_k;
  static constexpr int kGroupQuads = kGroup / 4;
  static constexpr int kGroupBytes = kGroup * kPanelRows * kLayout.bits / 8;
  static constexpr int kZero = kLayout.zero;

  PAGED_INLINE static F32 group_bytes(const std::byte* block, int offset, int group) {
    return load(reinterpret_cast<const std::int8_t*>(block) + offset + group * kPanelRows);
  }
  PAGED_INLINE static F32 scale(const std::byte* block, int group) {
    const F32 d = load(reinterpret_cast<const Float16*>(block));
    if constexpr (kLayout.sub_scaled) return d * group_bytes(block, kLayout.scales_offset(), group);
    return d;
  }
  PAGED_INLINE static F32 min(const std::byte* block, int group) {
    if constexpr (!kLayout.has_min) return zero();
    const F32 d = load(reinterpret_cast<const Float16*>(block) + kPanelRows);
    if constexpr (kLayout.sub_scaled) return zero() - d * group_bytes(block, kLayout.mins_offset(), group);
    return d;
  }
  PAGED_INLINE static const std::byte* codes(const std::byte* block, int group) {
    return block + kLayout.codes_offset() + group * kGroupBytes;
  }
  // k = 4 * kQuad .. 4 * kQuad + 3 of the group whose codes begin at `codes`.
  template <typename Dot, int kQuad>
  PAGED_INLINE static typename Dot::Operand operand(const std::byte* codes) {
    if constexpr (kLayout.bits == 8) return Dot::of_bytes(load_words(codes + kQuad * 64));
    return Dot::template of_nibbles<kQuad % 2>(load_words(codes + kQuad / 2 * 64));
  }
};

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

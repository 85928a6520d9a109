// SPDX-License-Identifier: Apache-2.0
// Decoders of the packed floats: eight consecutive k of a panel's 16 rows as float32 vectors. kBytes: of one k.
#pragma once

#include "cpu/isa/vec.h"
#include "cpu/packed_matrix.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

template <typename T>
struct FloatFormat {
  static constexpr int kBytes = kPanelRows * sizeof(T);
  PAGED_INLINE static void decode(const std::byte* panel, std::int64_t k, F32 (&w)[8]) {
    const T* at = reinterpret_cast<const T*>(panel) + k * kPanelRows;
    for (int i = 0; i < 8; ++i) w[i] = load(at + i * kPanelRows);
  }
};

struct PairFormat {
  static constexpr int kBytes = kPanelRows * 2;
  PAGED_INLINE static void decode(const std::byte* panel, std::int64_t k, F32 (&w)[8]) {
    for (int i = 0; i < 4; ++i) {
      const I32 words = load_words(panel + (k / 2 + i) * 64);
      w[2 * i] = even_bf16(words);
      w[2 * i + 1] = odd_bf16(words);
    }
  }
};

// Calls body(Format{}) with the decoder of a packed format of floats.
template <typename Body>
PAGED_INLINE void with_format(PackedFormat format, Body body) {
  switch (format) {
    case PackedFormat::kFloat32: body(FloatFormat<float>{}); return;
    case PackedFormat::kFloat16: body(FloatFormat<Float16>{}); return;
    case PackedFormat::kBFloat16: body(PairFormat{}); return;
    default: return;
  }
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

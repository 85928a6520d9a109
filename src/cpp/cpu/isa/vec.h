// SPDX-License-Identifier: Apache-2.0
// The one SIMD vocabulary of the kernels: F32 and I32 are sixteen lanes on every instruction set, whatever number of
// registers that takes, so a kernel is written once and a result does not depend on the register width. This is the
// only file that asks which instruction set it is built for. Reductions have one fixed shape (i + i+8, +4, +2, +1).
// max(a, b) and min(a, b) give b where either is NaN: put the value whose NaN must survive second.
#pragma once

#include <cstdint>

#if defined(__AVX512F__)
#include "cpu/isa/vec_avx512.h"
#elif defined(__AVX2__)
#include "cpu/isa/vec_avx2.h"
#else
#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif
#include "cpu/inline.h"
namespace paged::cpu::PAGED_ISA_NAMESPACE {
typedef float Float4 __attribute__((vector_size(16)));
typedef int Int4 __attribute__((vector_size(16)));
typedef unsigned UInt4 __attribute__((vector_size(16)));
typedef unsigned short UShort4 __attribute__((vector_size(8)));
#if defined(__ARM_NEON)
inline constexpr int kTileRows = 6;
inline constexpr int kDirectTiles = 4;
PAGED_INLINE Float4 fma4(Float4 a, Float4 b, Float4 c) {
  return reinterpret_cast<Float4>(
      vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
}
#else
inline constexpr int kTileRows = 3;
inline constexpr int kDirectTiles = 2;
PAGED_INLINE Float4 fma4(Float4 a, Float4 b, Float4 c) { return a * b + c; }
#endif
}  // namespace paged::cpu::PAGED_ISA_NAMESPACE
#include "cpu/isa/vec_portable.h"
#endif

namespace paged::cpu::PAGED_ISA_NAMESPACE {

#if defined(__AVX512BF16__)
inline constexpr bool kDotBf16 = true;
// acc + w.even * x.even + w.odd * x.odd, of pairs of bfloat16.
PAGED_INLINE F32 dot_pairs(F32 acc, I32 w, I32 x) { return {_mm512_dpbf16_ps(acc.v, (__m512bh)w.v, (__m512bh)x.v)}; }
#else
inline constexpr bool kDotBf16 = false;
F32 dot_pairs(F32 acc, I32 w, I32 x);  // never called
#endif

#if !defined(__AVX512F__)
template <int kShift>
PAGED_INLINE F32 nibble_to_float(I32 words) {
  return int_to_float(shift_right<kShift>(words) & set1_word(15));
}
template <typename T>
PAGED_INLINE F32 load_first(const T* p, int n) {
  T lanes[16] = {};
  for (int i = 0; i < n && i < 16; ++i) lanes[i] = p[i];
  return load(lanes);
}
template <typename T>
PAGED_INLINE void store_first(T* p, F32 x, int n) {
  T lanes[16];
  store(lanes, x);
  for (int i = 0; i < n && i < 16; ++i) p[i] = lanes[i];
}
#endif

// The two bfloat16 of each 32-bit word.
PAGED_INLINE F32 even_bf16(I32 words) { return as_float(shift_left<16>(words)); }
PAGED_INLINE F32 odd_bf16(I32 words) { return as_float(words & set1_word(0xffff0000u)); }

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

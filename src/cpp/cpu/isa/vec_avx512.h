// SPDX-License-Identifier: Apache-2.0
// Sixteen lanes as one AVX-512 register. Included by vec.h only.
#pragma once

#include <immintrin.h>

#include "cpu/float16.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

struct F32 {
  __m512 v;
};
struct I32 {
  __m512i v;
};

inline constexpr int kTileRows = 12;  // rows x panels of accumulators that fit the 32 registers
inline constexpr int kTilePanels = 2;
inline constexpr int kDirectTiles = 8;  // independent chains that hide the latency of an fma
inline constexpr int kScoreVectors = 4;

// Only sixteen registers need it.
PAGED_INLINE void free_registers() {}

// Any n: none below 1, all above 15.
PAGED_INLINE __mmask16 first_lanes(int n) {
  return static_cast<__mmask16>(n >= 16 ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1u);
}

PAGED_INLINE F32 set1(float x) { return {_mm512_set1_ps(x)}; }
PAGED_INLINE F32 zero() { return {_mm512_setzero_ps()}; }
PAGED_INLINE F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
PAGED_INLINE F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
PAGED_INLINE F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
PAGED_INLINE F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
PAGED_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
PAGED_INLINE F32 nfma(F32 a, F32 b, F32 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
PAGED_INLINE F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
PAGED_INLINE F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
PAGED_INLINE F32 select_lt(F32 a, F32 b, F32 yes, F32 no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
PAGED_INLINE F32 keep_lanes(F32 x, int begin, int end, float other) {
  const auto mask = static_cast<__mmask16>(first_lanes(end) & ~first_lanes(begin));
  return {_mm512_mask_blend_ps(mask, _mm512_set1_ps(other), x.v)};
}
PAGED_INLINE std::uint32_t mask_ge(F32 a, F32 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }

PAGED_INLINE I32 load_words(const void* p) { return {_mm512_loadu_si512(p)}; }
PAGED_INLINE I32 set1_word(std::uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
template <int kBits>
PAGED_INLINE I32 shift_left(I32 a) {
  return {_mm512_slli_epi32(a.v, kBits)};
}
template <int kBits>
PAGED_INLINE I32 shift_right(I32 a) {
  return {_mm512_srli_epi32(a.v, kBits)};
}
template <int kBits>
PAGED_INLINE I32 shift_right_signed(I32 a) {
  return {_mm512_srai_epi32(a.v, kBits)};
}
PAGED_INLINE I32 operator&(I32 a, I32 b) { return {_mm512_and_si512(a.v, b.v)}; }
PAGED_INLINE I32 operator^(I32 a, I32 b) { return {_mm512_xor_si512(a.v, b.v)}; }
PAGED_INLINE I32 operator+(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
PAGED_INLINE I32 operator-(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
PAGED_INLINE F32 int_to_float(I32 a) { return {_mm512_cvtepi32_ps(a.v)}; }
// Bits [kShift, kShift + 4) of each word, as a number: a look-up that reads the low four bits of its index.
template <int kShift>
PAGED_INLINE F32 nibble_to_float(I32 words) {
  const __m512 numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return {_mm512_permutexvar_ps(_mm512_srli_epi32(words.v, kShift), numbers)};
}
PAGED_INLINE I32 round_to_int(F32 a) { return {_mm512_cvtps_epi32(a.v)}; }
PAGED_INLINE F32 as_float(I32 a) { return {_mm512_castsi512_ps(a.v)}; }

PAGED_INLINE F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
PAGED_INLINE F32 load_first(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
PAGED_INLINE void store(float* p, F32 x) { _mm512_storeu_ps(p, x.v); }
PAGED_INLINE void store_first(float* p, F32 x, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), x.v); }

PAGED_INLINE F32 widen_bf16(__m256i x) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
}
PAGED_INLINE __m256i narrow_bf16(F32 x) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16));
}
PAGED_INLINE __m256i narrow_f16(F32 x) { return _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

PAGED_INLINE F32 load(const BFloat16* p) { return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
PAGED_INLINE F32 load_first(const BFloat16* p, int n) {
  return widen_bf16(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
PAGED_INLINE void store(BFloat16* p, F32 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bf16(x)); }
PAGED_INLINE void store_first(BFloat16* p, F32 x, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), narrow_bf16(x));
}
PAGED_INLINE F32 load(const Float16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
PAGED_INLINE F32 load_first(const Float16* p, int n) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p))};
}
PAGED_INLINE void store(Float16* p, F32 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_f16(x)); }
PAGED_INLINE void store_first(Float16* p, F32 x, int n) { _mm256_mask_storeu_epi16(p, first_lanes(n), narrow_f16(x)); }
PAGED_INLINE F32 widen_codes(__m128i x) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x))}; }
PAGED_INLINE F32 load(const std::int8_t* p) {
  return widen_codes(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// What lies in [-128, 127].
PAGED_INLINE void store_bytes(std::int8_t* p, I32 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(x.v));
}
PAGED_INLINE F32 load_first(const std::int8_t* p, int n) {
  return widen_codes(_mm_maskz_loadu_epi8(first_lanes(n), p));
}

PAGED_INLINE __m256 high_half(__m512 x) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)); }
PAGED_INLINE float reduce_add(F32 x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x.v), high_half(x.v));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
PAGED_INLINE float reduce_max(F32 x) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x.v), high_half(x.v));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
PAGED_INLINE float first_lane(F32 x) { return _mm512_cvtss_f32(x.v); }

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

// SPDX-License-Identifier: Apache-2.0
// What AVX512-BF16 has for bfloat16 beyond vec.h. Denormal numbers count as zero.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cpu/isa/rows.h"
#include "cpu/isa/vec.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

#if defined(__AVX512BF16__)

// Words of 32 elements of a and b, fours of each side by side: even fours -> low, odd ones -> high.
PAGED_INLINE void interleave_fours(const BFloat16* a, const BFloat16* b, I32& low, I32& high) {
  const __m512i even = _mm512_loadu_si512(a), odd = _mm512_loadu_si512(b);
  low.v = _mm512_unpacklo_epi16(even, odd), high.v = _mm512_unpackhi_epi16(even, odd);
}
// 32 words to this order, and back.
PAGED_INLINE void split_fours(F32& first, F32& second) {
  const __m512 low = _mm512_shuffle_f32x4(first.v, second.v, 0x88);
  second.v = _mm512_shuffle_f32x4(first.v, second.v, 0xdd), first.v = low;
}
PAGED_INLINE void join_fours(F32& low, F32& high) {
  const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11),
                second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  const __m512d evens = _mm512_castps_pd(low.v), odds = _mm512_castps_pd(high.v);
  low.v = _mm512_castpd_ps(_mm512_permutex2var_pd(evens, first, odds));
  high.v = _mm512_castpd_ps(_mm512_permutex2var_pd(evens, second, odds));
}
// Words of 32 elements of a and b: to[i] = a[i] and, above it, b[i].
PAGED_INLINE void interleave(const BFloat16* a, const BFloat16* b, void* to) {
  I32 low, high;
  interleave_fours(a, b, low, high);
  F32 first = as_float(low), second = as_float(high);
  join_fours(first, second);
  _mm512_store_ps(to, first.v);
  _mm512_store_ps(static_cast<std::byte*>(to) + 64, second.v);
}
// The same of codes, which bfloat16 has exactly.
PAGED_INLINE void interleave(const std::int8_t* a, const std::int8_t* b, void* to) {
  for (int i = 0; i < 2; ++i) {
    const __m512i odd = _mm512_castps_si512(load(b + 16 * i).v), even = _mm512_castps_si512(load(a + 16 * i).v);
    _mm512_store_si512(static_cast<std::byte*>(to) + 64 * i,
                       _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(even, 16), odd));
  }
}
// Or GCC loads a vector anew for each instruction that reads it.
PAGED_INLINE void keep_in_register(I32& x) { asm("" : "+v"(x.v)); }
// Sixteen codes of a and b times a scale for each lane, rounded to nearest even, side by side as above.
PAGED_INLINE void interleave_scaled(const std::int8_t* a, const std::int8_t* b, F32 scale, void* to) {
  const auto words = [&](const std::int8_t* p) {
    return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((load(p) * scale).v));
  };
  _mm512_store_si512(to, _mm512_or_si512(words(a), _mm512_slli_epi32(words(b), 16)));
}
// 2^x, relative error below 9e-5: a twentieth of what bfloat16 rounds off (coefficients of FlashAttention 4's). Exactly
// 1 for 0 and 0 for -infinity; NaN stays NaN.
PAGED_INLINE F32 exp2_of_weights(F32 x) {
  const __m512 f = _mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 y = _mm512_set1_ps(7.7119089663e-2f);
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.27564394474e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.95146143436e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
  return {_mm512_scalef_ps(y, x.v)};
}
// 1 / x, relative error below 2^-14.
PAGED_INLINE F32 reciprocal_of_weights(F32 x) { return {_mm512_rcp14_ps(x.v)}; }
// Sixteen of a, then of b, rounded to nearest even; denormal numbers become zero.
PAGED_INLINE void store_rounded(BFloat16* to, F32 a, F32 b) {
  _mm512_store_si512(to, (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v));
}
// The same of the first n of one.
PAGED_INLINE void store_rounded_first(BFloat16* to, F32 x, int n) {
  const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(x.v);
  if (n == 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded);
  else
    _mm256_mask_storeu_epi16(to, first_lanes(n), rounded);
}
// out[i] = factor * the largest lane of v[i]; whether any is above its limit.
PAGED_INLINE bool reduce_rows(const F32 (&v)[4], float factor, const float* limit, float* out) {
  const auto larger_of = [](__m512 a, __m512 b) {
    return _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  };
  const __m512 evens = larger_of(v[0].v, v[2].v), odds = larger_of(v[1].v, v[3].v);
  __m512 four = larger_of(evens, odds);
  four = _mm512_max_ps(four, _mm512_shuffle_f32x4(four, four, 0x4e));
  const __m128 rows =
      _mm_mul_ps(_mm_max_ps(_mm512_castps512_ps128(four), _mm512_extractf32x4_ps(four, 1)), _mm_set1_ps(factor));
  _mm_storeu_ps(out, rows);
  return _mm_movemask_ps(_mm_cmpgt_ps(rows, _mm_loadu_ps(limit))) != 0;
}

#else

// Never called.
void interleave(const BFloat16* a, const BFloat16* b, void* to);
void interleave(const std::int8_t* a, const std::int8_t* b, void* to);
void interleave_fours(const BFloat16* a, const BFloat16* b, I32& low, I32& high);
void split_fours(F32& first, F32& second);
void join_fours(F32& low, F32& high);
void keep_in_register(I32& x);
void interleave_scaled(const std::int8_t* a, const std::int8_t* b, F32 scale, void* to);
F32 exp2_of_weights(F32 x);
F32 reciprocal_of_weights(F32 x);
void store_rounded(BFloat16* to, F32 a, F32 b);
void store_rounded_first(BFloat16* to, F32 x, int n);
bool reduce_rows(const F32 (&v)[4], float factor, const float* limit, float* out);

#endif

// acc[r] += the pair of bfloat16 where the cursor is in row r, by the words.
template <int kRows, int kVectors>
PAGED_INLINE void add_pair(const RowCursor<kRows>& a, const I32 (&words)[kVectors], F32 (&acc)[kRows][kVectors]) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    std::uint32_t pair;
    __builtin_memcpy(&pair, a.of(r), sizeof(pair));
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) acc[r][v] = dot_pairs(acc[r][v], words[v], set1_word(pair));
  }
}

// Every T that tiles or weights end in is rounded by the same instruction, wherever its column lies.
template <typename T>
PAGED_INLINE void store_result(T* to, F32 x, int n) {
  if constexpr (kDotBf16 && std::is_same_v<T, BFloat16>)
    store_rounded_first(to, x, n);
  else
    store_lanes(to, x, n);
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

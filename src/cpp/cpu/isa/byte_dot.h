// SPDX-License-Identifier: Apache-2.0
// Dot products of bytes: what an instruction set has for them. Each 32-bit word holds four consecutive k of one row, of
// codes of a weight and, the same in every word, of codes of x in [-127, 127]. All sums are exact integers, so they are
// the same on every instruction set, in any order.
#pragma once

#include "cpu/isa/vec.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

// Words of 4 k whose pairs of products add up in 16 bits, for codes up to max_code; a power of two.
constexpr int words_in_16_bits(int max_code, int num_words) {
  int words = 1;
  while (2 * words <= num_words && 2 * words * 2 * 127 * max_code <= 32767) words *= 2;
  return words;
}

#if defined(__AVX512F__)

inline constexpr int kByteRows = 8;
inline constexpr int kByteTiles = 16;  // rows x panels of sums that fit the registers

PAGED_INLINE void store_codes(std::int8_t* p, I32 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(x.v));
}

#elif defined(__AVX2__)

inline constexpr int kByteRows = 4;
inline constexpr int kByteTiles = 4;

PAGED_INLINE void store_codes(std::int8_t* p, I32 x) {
  const __m256i shorts = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.lo, x.hi), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi16(_mm256_castsi256_si128(shorts), _mm256_extracti128_si256(shorts, 1)));
}

#else

inline constexpr int kByteRows = 2;
inline constexpr int kByteTiles = 2;

PAGED_INLINE void store_codes(std::int8_t* p, I32 x) {
  for (int i = 0; i < 16; ++i) {
    const int code = x.q[i / 4][i % 4];
    p[i] = static_cast<std::int8_t>(code < -128 ? -128 : code > 127 ? 127 : code);
  }
}

#endif

#if defined(__AVX512VNNI__)

// Sums of products of codes. begin() and end() frame runs of kRun words; the sum lacks kOffset * the sum of x's codes.
template <bool kSigned, int kMaxCode, int kWords>
struct ByteDot {
  static constexpr int kRun = kWords;
  static constexpr int kOffset = kSigned ? 128 : 0;  // added to the weights' codes: the instruction wants them unsigned

  PAGED_INLINE static I32 prepare(I32 words) {
    if constexpr (kSigned) return {_mm512_xor_si512(words.v, _mm512_set1_epi32(static_cast<int>(0x80808080u)))};
    return words;
  }
  PAGED_INLINE static I32 begin(I32 sum) { return sum; }
  PAGED_INLINE static I32 next(I32 run, I32 w, I32 x) { return {_mm512_dpbusd_epi32(run.v, w.v, x.v)}; }
  PAGED_INLINE static I32 end(I32, I32 run) { return run; }
};

#elif defined(__AVX2__)

// A signed product is |w| * (x with w's sign): x is never -128, so both are exact, and two of them fit 16 bits.
template <bool kSigned, int kMaxCode, int kWords>
struct ByteDot {
  static constexpr int kRun = words_in_16_bits(kMaxCode, kWords);
  static constexpr int kOffset = 0;

  PAGED_INLINE static I32 prepare(I32 words) { return words; }
#if defined(__AVX512F__)
  PAGED_INLINE static __m512i products(__m512i w, __m512i x) {
    if constexpr (!kSigned) return _mm512_maddubs_epi16(w, x);
    const __m512i signed_x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
    return _mm512_maddubs_epi16(_mm512_abs_epi8(w), signed_x);
  }
  PAGED_INLINE static I32 begin(I32) { return {_mm512_setzero_si512()}; }
  PAGED_INLINE static I32 next(I32 run, I32 w, I32 x) { return {_mm512_add_epi16(run.v, products(w.v, x.v))}; }
  PAGED_INLINE static I32 end(I32 sum, I32 run) {
    return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(run.v, _mm512_set1_epi16(1)))};
  }
#else
  PAGED_INLINE static __m256i products(__m256i w, __m256i x) {
    if constexpr (!kSigned) return _mm256_maddubs_epi16(w, x);
    return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
  }
  PAGED_INLINE static I32 begin(I32) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  PAGED_INLINE static I32 next(I32 run, I32 w, I32 x) {
    return {_mm256_add_epi16(run.lo, products(w.lo, x.lo)), _mm256_add_epi16(run.hi, products(w.hi, x.hi))};
  }
  PAGED_INLINE static I32 end(I32 sum, I32 run) {
    const __m256i ones = _mm256_set1_epi16(1);
    return {_mm256_add_epi32(sum.lo, _mm256_madd_epi16(run.lo, ones)),
            _mm256_add_epi32(sum.hi, _mm256_madd_epi16(run.hi, ones))};
  }
#endif
};

#else

// Even and odd bytes apart, as 16-bit numbers.
template <bool kSigned, int kMaxCode, int kWords>
struct ByteDot {
  typedef short Short8 __attribute__((vector_size(16)));
  typedef unsigned short UShort8 __attribute__((vector_size(16)));
  static constexpr int kRun = words_in_16_bits(kMaxCode, kWords);
  static constexpr int kOffset = 0;

  PAGED_INLINE static Short8 even(Short8 bytes) {
    return reinterpret_cast<Short8>(reinterpret_cast<UShort8>(bytes) << 8) >> 8;
  }
  PAGED_INLINE static Short8 odd(Short8 bytes) { return bytes >> 8; }

  PAGED_INLINE static I32 prepare(I32 words) { return words; }
  PAGED_INLINE static I32 begin(I32) { return set1_word(0); }
  PAGED_INLINE static I32 next(I32 run, I32 w, I32 x) {
    return each_quarter<I32>([&](int i) {
      const auto a = reinterpret_cast<Short8>(w.q[i]), b = reinterpret_cast<Short8>(x.q[i]);
      Short8 products = reinterpret_cast<Short8>(run.q[i]);
      if constexpr (kSigned)
        products += even(a) * even(b) + odd(a) * odd(b);
      else
        products += (a & 0xff) * even(b) + reinterpret_cast<Short8>(reinterpret_cast<UShort8>(a) >> 8) * odd(b);
      return reinterpret_cast<Int4>(products);
    });
  }
  PAGED_INLINE static I32 end(I32 sum, I32 run) {
    return sum + shift_right_signed<16>(shift_left<16>(run)) + shift_right_signed<16>(run);
  }
};

#endif

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

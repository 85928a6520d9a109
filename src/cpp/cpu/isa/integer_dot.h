// SPDX-License-Identifier: Apache-2.0
// Dot products of weights' codes and codes of x of 16 bits: what an instruction set has for them. A word of packed
// codes holds those of four consecutive k of one row of weights, a quad; the four codes of x they meet are eight bytes,
// the same for all rows. All sums are exact, so they are the same on every instruction set, in any order.
//
//   WideDot  weights are widened to 16 bits, even and odd k apart; so are the words of x
//   ByteDot  AVX512-VNNI: weights are unsigned bytes; x is 256 * high + low, four high and four low bytes in
//            the words of x. The same work for the instruction, and none for widening
#pragma once

#include "cpu/isa/vec.h"

#if defined(__SSE2__) && !defined(__AVX2__)
#include <emmintrin.h>
#endif

namespace paged::cpu::PAGED_ISA_NAMESPACE {

inline constexpr int kQuadBytes = 8;  // of the codes of x for four k
#if defined(__AVX512F__)
inline constexpr int kIntegerRows = 6;
inline constexpr int kIntegerPanels = 2;  // rows x panels of sums and results that fit the registers
#elif defined(__AVX2__)
inline constexpr int kIntegerRows = 4;
inline constexpr int kIntegerPanels = 1;
#else
inline constexpr int kIntegerRows = 2;
inline constexpr int kIntegerPanels = 1;
#endif

struct QuadOfX {
  I32 first, second;
};
PAGED_INLINE I32 load_word(const std::byte* p) {
  std::uint32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return set1_word(word);
}
PAGED_INLINE QuadOfX load_quad(const std::byte* codes) { return {load_word(codes), load_word(codes + 4)}; }

// All bytes of a vector; `to` is aligned.
PAGED_INLINE void store_words(std::byte* to, I32 words) { store(reinterpret_cast<float*>(to), as_float(words)); }

// sum + the products of both halves of each word. Hides each sum from the compiler, which would add products up in
// another order and keep them all for it, or copy each sum to another register and back.
PAGED_INLINE I32 add_pairs(I32 sum, I32 a, I32 b);

#if defined(__AVX512F__)

template <bool kSigned>
PAGED_INLINE I32 even_of_bytes(I32 words) {
  if constexpr (kSigned) return {_mm512_srai_epi16(_mm512_slli_epi16(words.v, 8), 8)};
  return words & set1_word(0x00ff00ffu);
}
template <bool kSigned>
PAGED_INLINE I32 odd_of_bytes(I32 words) {
  return {kSigned ? _mm512_srai_epi16(words.v, 8) : _mm512_srli_epi16(words.v, 8)};
}
PAGED_INLINE I32 add_pairs(I32 sum, I32 a, I32 b) {
#if defined(__AVX512VNNI__)
  sum.v = _mm512_dpwssd_epi32(sum.v, a.v, b.v);
#else
  sum.v = _mm512_add_epi32(sum.v, _mm512_madd_epi16(a.v, b.v));
#endif
  asm("" : "+v"(sum.v));
  return sum;
}
PAGED_INLINE __m256i as_shorts(I32 x) { return _mm512_cvtepi32_epi16(x.v); }

#elif defined(__AVX2__)

template <bool kSigned>
PAGED_INLINE I32 even_of_bytes(I32 words) {
  if constexpr (kSigned)
    return {_mm256_srai_epi16(_mm256_slli_epi16(words.lo, 8), 8), _mm256_srai_epi16(_mm256_slli_epi16(words.hi, 8), 8)};
  return words & set1_word(0x00ff00ffu);
}
template <bool kSigned>
PAGED_INLINE I32 odd_of_bytes(I32 words) {
  if constexpr (kSigned) return {_mm256_srai_epi16(words.lo, 8), _mm256_srai_epi16(words.hi, 8)};
  return {_mm256_srli_epi16(words.lo, 8), _mm256_srli_epi16(words.hi, 8)};
}
PAGED_INLINE __m256i add_in_order(__m256i sum, __m256i products) {
  sum = _mm256_add_epi32(sum, products);
  asm("" : "+x"(sum));
  return sum;
}
PAGED_INLINE I32 add_pairs(I32 sum, I32 a, I32 b) {
  return {add_in_order(sum.lo, _mm256_madd_epi16(a.lo, b.lo)), add_in_order(sum.hi, _mm256_madd_epi16(a.hi, b.hi))};
}
PAGED_INLINE __m256i as_shorts(I32 x) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(x.lo, x.hi), 0xd8); }

#else

typedef short Short8 __attribute__((vector_size(16)));
typedef unsigned short UShort8 __attribute__((vector_size(16)));

template <bool kSigned>
PAGED_INLINE I32 even_of_bytes(I32 words) {
  if constexpr (!kSigned) return words & set1_word(0x00ff00ffu);
  return each_quarter<I32>([&](int i) {
    return reinterpret_cast<Int4>(reinterpret_cast<Short8>(reinterpret_cast<UShort8>(words.q[i]) << 8) >> 8);
  });
}
template <bool kSigned>
PAGED_INLINE I32 odd_of_bytes(I32 words) {
  if constexpr (!kSigned) return shift_right<8>(words) & set1_word(0x00ff00ffu);
  return each_quarter<I32>([&](int i) { return reinterpret_cast<Int4>(reinterpret_cast<Short8>(words.q[i]) >> 8); });
}
PAGED_INLINE I32 add_pairs(I32 sum, I32 a, I32 b) {
  return each_quarter<I32>([&](int i) {
#if defined(__SSE2__)
    return sum.q[i] +
           reinterpret_cast<Int4>(_mm_madd_epi16(reinterpret_cast<__m128i>(a.q[i]), reinterpret_cast<__m128i>(b.q[i])));
#else
    const auto low = [](Int4 x) { return reinterpret_cast<Int4>(reinterpret_cast<UInt4>(x) << 16) >> 16; };
    return sum.q[i] + low(a.q[i]) * low(b.q[i]) + (a.q[i] >> 16) * (b.q[i] >> 16);
#endif
  });
}

#endif

struct WideDot {
  struct Operand {
    I32 even, odd;  // two k each, in the halves of a word
  };
  struct Sums {
    I32 all;
  };

  // Added to the weights' codes.
  static constexpr int operand_offset(bool) { return 0; }
  template <bool kSigned>
  PAGED_INLINE static Operand of_bytes(I32 words) {
    return {even_of_bytes<kSigned>(words), odd_of_bytes<kSigned>(words)};
  }
  template <int kHalf>
  PAGED_INLINE static Operand of_nibbles(I32 words) {
    const I32 mask = set1_word(0x000f000fu);
    return {(kHalf == 0 ? words : shift_right<4>(words)) & mask, shift_right<8 + 4 * kHalf>(words) & mask};
  }
  // Codes less kZero, in each half of a word: 2^15 above, there is nothing to borrow.
  template <int kZero>
  PAGED_INLINE static Operand less(Operand w) {
    if constexpr (kZero == 0) return w;
    const I32 sign = set1_word(0x80008000u), offset = set1_word(0x80008000u - 0x00010001u * kZero);
    return {(w.even + offset) ^ sign, (w.odd + offset) ^ sign};
  }

  PAGED_INLINE static Sums sums_from(I32 start) { return {start}; }
  PAGED_INLINE static void add_products(Sums& sums, Operand w, QuadOfX x) {
    sums.all = add_pairs(add_pairs(sums.all, w.even, x.first), w.odd, x.second);
  }
  PAGED_INLINE static I32 total(Sums sums) { return sums.all; }

  // Sixteen codes of x.
  PAGED_INLINE static void store_codes(std::byte* p, I32 x) {
#if defined(__AVX2__)
    const __m256i shorts = as_shorts(x);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(shorts, 0xd8), 0xd8));
#else
    constexpr int kEvenFirst[4] = {0, 2, 1, 3};
    short codes[16];
    for (int i = 0; i < 16; ++i) codes[i] = static_cast<short>(x.q[i / 4][kEvenFirst[i % 4]]);
    __builtin_memcpy(p, codes, sizeof(codes));
#endif
  }
};

#if defined(__AVX512VNNI__)

struct ByteDot {
  struct Operand {
    I32 bytes;
  };
  struct Sums {
    I32 high, low;
  };

  // The instruction wants weights unsigned.
  static constexpr int operand_offset(bool is_signed) { return is_signed ? 128 : 0; }
  template <bool kSigned>
  PAGED_INLINE static Operand of_bytes(I32 words) {
    if constexpr (kSigned) return {{_mm512_xor_si512(words.v, _mm512_set1_epi32(static_cast<int>(0x80808080u)))}};
    return {words};
  }
  template <int kHalf>
  PAGED_INLINE static Operand of_nibbles(I32 words) {
    return {(kHalf == 0 ? words : shift_right<4>(words)) & set1_word(0x0f0f0f0fu)};
  }

  PAGED_INLINE static Sums sums_from(I32 start) { return {set1_word(0), start}; }
  PAGED_INLINE static void add_products(Sums& sums, Operand w, QuadOfX x) {
    sums.high = {_mm512_dpbusd_epi32(sums.high.v, w.bytes.v, x.first.v)};
    sums.low = {_mm512_dpbusd_epi32(sums.low.v, w.bytes.v, x.second.v)};
    asm("" : "+v"(sums.high.v), "+v"(sums.low.v));  // as in add_pairs()
  }
  PAGED_INLINE static I32 total(Sums sums) { return shift_left<8>(sums.high) + sums.low; }

  PAGED_INLINE static void store_codes(std::byte* p, I32 x) {
    const __m128i high = _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(x.v, _mm512_set1_epi32(128)), 8));
    const __m128i low = _mm512_cvtepi32_epi8(x.v);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_unpacklo_epi32(high, low));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 16), _mm_unpackhi_epi32(high, low));
  }
};

// Products with codes as they lie: rows by panels whose sums and results fit the registers, and whether any number of
// rows does best so.
using CodesDot = ByteDot;
inline constexpr int kCodesRows = 4;
inline constexpr int kCodesPanels = 2;
inline constexpr bool kCodesMeetAll = true;

#else

using CodesDot = WideDot;
inline constexpr int kCodesRows = 8;
inline constexpr int kCodesPanels = 1;
inline constexpr bool kCodesMeetAll = false;

#endif

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

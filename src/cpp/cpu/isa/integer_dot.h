// SPDX-License-Identifier: Apache-2.0
// Dot products of weights' codes and codes of x of 16 bits: what an instruction set has for them. A word of packed
// codes holds those of four consecutive k of one row of weights, a quad; the four codes of x they meet are eight bytes,
// the same for all rows. All sums are exact, so they are the same on every instruction set, in any order.
//
//   WideDot  weights are widened to 16 bits, even and odd k apart; so are the words of x
//   ByteDot  AVX512-VNNI: weights are unsigned bytes; x is 256 * high + low, four high and four low bytes in
//            the words of x. Two passes over a group, the second one for the low bytes, if there are any
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

PAGED_INLINE I32 load_word(const std::byte* p) {
  std::uint32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return set1_word(word);
}

// All bytes of a vector; `to` is aligned.
PAGED_INLINE void store_words(std::byte* to, I32 words) { store(reinterpret_cast<float*>(to), as_float(words)); }

// sum + the products of both halves of each word. Hides each sum from the compiler, which would add products up in
// another order and keep them all for it, or copy each sum to another register and back.
PAGED_INLINE I32 add_pairs(I32 sum, I32 a, I32 b);

#if defined(__AVX512F__)

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
  PAGED_INLINE static Operand of_bytes(I32 words) {
    const I32 mask = set1_word(0x00ff00ffu);
    return {words & mask, shift_right<8>(words) & mask};
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

  static constexpr int kPasses = 1;  // over a group's products
  template <int>
  PAGED_INLINE static I32 add_products(I32 sum, Operand w, const std::byte* x) {
    return add_pairs(add_pairs(sum, w.even, load_word(x)), w.odd, load_word(x + 4));
  }

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
  PAGED_INLINE static Operand of_bytes(I32 words) { return {words}; }
  template <int kHalf>
  PAGED_INLINE static Operand of_nibbles(I32 words) {
    return {(kHalf == 0 ? words : shift_right<4>(words)) & set1_word(0x0f0f0f0fu)};
  }

  // 0: the high bytes of x, 1: the low ones.
  static constexpr int kPasses = 2;
  template <int kPass>
  PAGED_INLINE static I32 add_products(I32 sum, Operand w, const std::byte* x) {
    sum.v = _mm512_dpbusd_epi32(sum.v, w.bytes.v, load_word(x + 4 * kPass).v);
    asm("" : "+v"(sum.v));  // as in add_pairs()
    return sum;
  }

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
inline constexpr int kCodesRows = 6;
inline constexpr int kCodesPanels = 2;
inline constexpr bool kCodesMeetAll = true;

#else

using CodesDot = WideDot;
inline constexpr int kCodesRows = 8;
inline constexpr int kCodesPanels = 1;
inline constexpr bool kCodesMeetAll = false;

#endif

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

// SPDX-License-Identifier: Apache-2.0
// Rows of x as CodeTiles (cpu/quantised_rows.h), sixteen at a time: what is reduced over a row's group is reduced for
// all of them at once. The codes are those of quantise_rows.cpp.
#pragma once

#include "cpu/isa/bfloat16.h"
#include "cpu/isa/code_scales.h"
#include "cpu/isa/rows.h"
#include "cpu/isa/tiles.h"
#include "cpu/quantised_rows.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

#if defined(__AMX_BF16__) && defined(__AMX_TILE__)

// Lane r of the result: all lanes of v[r], joined by `join` in any order.
template <typename Join>
PAGED_INLINE __m512 reduce_each(__m512 (&v)[16], Join join) {
  for (int i = 0; i < 8; ++i)
    v[i] = join(_mm512_shuffle_f32x4(v[i], v[i + 8], 0x44), _mm512_shuffle_f32x4(v[i], v[i + 8], 0xee));
  for (int i = 0; i < 4; ++i)
    v[i] = join(_mm512_shuffle_f32x4(v[i], v[i + 4], 0x88), _mm512_shuffle_f32x4(v[i], v[i + 4], 0xdd));
  for (int i = 0; i < 2; ++i)
    v[i] = join(_mm512_shuffle_ps(v[i], v[i + 2], 0x44), _mm512_shuffle_ps(v[i], v[i + 2], 0xee));
  const __m512 lanes = join(_mm512_shuffle_ps(v[0], v[1], 0x88), _mm512_shuffle_ps(v[0], v[1], 0xdd));
  return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15), lanes);
}

// Of the groups of sixteen rows: what makes codes of them, and what codes are times of.
struct GroupScales {
  alignas(64) float inverse[16];
  alignas(64) float scale[16];
  __mmask16 fine;
};

// The largest magnitudes of sixteen groups, as bits, which are in the order of what they stand for.
PAGED_INLINE GroupScales scales_of(__m512i bits, __m512 most_squares) {
  const __mmask16 is_infinite = _mm512_cmpge_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
  const __m512 some = _mm512_set1_ps(kSmallestFloat);
  const __mmask16 is_zero = is_infinite | _mm512_cmplt_epi32_mask(bits, _mm512_castps_si512(some));
  const __m512 finite = _mm512_mask_mov_ps(_mm512_castsi512_ps(bits), is_infinite, _mm512_setzero_ps());
  const __m512 largest = _mm512_mask_mov_ps(finite, is_zero, _mm512_set1_ps(1.0f));
  GroupScales out;
  out.fine = _mm512_cmp_ps_mask(_mm512_mul_ps(finite, finite), most_squares, _CMP_GT_OQ);
  const __m512i exponent =
      _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(largest), _mm512_set1_epi32(0x1ffff)), 23);
  const auto power_of_two = [](__m512i biased) { return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23)); };
  const __m512 fine_inverse = power_of_two(_mm512_sub_epi32(_mm512_set1_epi32(268), exponent));
  const __m512 fine_scale = power_of_two(_mm512_sub_epi32(exponent, _mm512_set1_epi32(14)));
  const __m512 inverse =
      _mm512_mask_mov_ps(_mm512_div_ps(_mm512_set1_ps(kCoarseCodes), largest), out.fine, fine_inverse);
  const __m512 scale =
      _mm512_mask_mov_ps(_mm512_div_ps(largest, _mm512_set1_ps(kCoarseCodes * kCoarseUnit)), out.fine, fine_scale);
  _mm512_store_ps(out.inverse, _mm512_maskz_mov_ps(static_cast<__mmask16>(~is_zero), inverse));
  _mm512_store_ps(out.scale, _mm512_mask_mov_ps(scale, is_infinite, _mm512_set1_ps(__builtin_nanf(""))));
  return out;
}

template <typename T>
PAGED_INLINE void code_tile(const T* const (&rows)[16], std::int64_t k, __m512 most_squares, CodeTile& tile) {
  __m512 v[16];
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int r = 0; r < 16; ++r) {
    const __m512i a = _mm512_and_si512(_mm512_castps_si512(load(rows[r] + k).v), magnitude);
    const __m512i b = _mm512_and_si512(_mm512_castps_si512(load(rows[r] + k + 16).v), magnitude);
    v[r] = _mm512_castsi512_ps(_mm512_max_epi32(a, b));
  }
  const auto larger_of = [](__m512 a, __m512 b) {
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
  };
  const GroupScales scales = scales_of(_mm512_castps_si512(reduce_each(v, larger_of)), most_squares);
  for (int r = 0; r < 16; ++r) {
    const F32 inverse = set1(scales.inverse[r]);
    const __m128i bits = _mm_cvtsi32_si128((scales.fine >> r & 1) != 0 ? 0 : kCoarseBits);
    const I32 first = {_mm512_sll_epi32(round_to_int(load(rows[r] + k) * inverse).v, bits)};
    const I32 second = {_mm512_sll_epi32(round_to_int(load(rows[r] + k + 16) * inverse).v, bits)};
    const auto high_of = [](I32 codes) { return shift_left<8>(shift_right_signed<8>(codes + set1_word(128))); };
    const I32 a = high_of(first), b = high_of(second);
    store_rounded(tile.high[r], int_to_float(a), int_to_float(b));
    store_rounded(tile.low[r], int_to_float(first - a), int_to_float(second - b));
    v[r] = (int_to_float(first) + int_to_float(second)).v;
  }
  const __m512 sums = reduce_each(v, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
  const __m512 all = _mm512_load_ps(scales.scale);
  _mm512_store_ps(tile.scales, all);
  _mm512_store_ps(tile.scaled_sums, _mm512_mul_ps(sums, all));
  tile.is_fine = scales.fine != 0 ? 1 : 0;
}

// Rows [row_begin, row_end) of x, from a first row of a tile on. Rows that the last tile lacks repeat the last one.
template <typename T>
PAGED_INLINE void code_tiles(const MatrixView& x, const QuantisedRows& to, std::int64_t row_begin,
                             std::int64_t row_end) {
  for (std::int64_t row = row_begin; row < row_end; row += 16) {
    const T* rows[16];
    alignas(64) float most_squares[16];
    for (int r = 0; r < 16; ++r) {
      rows[r] = row_of<const T>(x, row + r < row_end ? row + r : row_end - 1);
      most_squares[r] = most_square(rows[r], to.cols);
    }
    CodeTile* tiles = to.tiles() + (row - to.first_row) / 16 * to.tile_stride();
    for (std::int64_t k = 0; k < to.cols; k += kCodeGroup)
      code_tile(rows, k, _mm512_load_ps(most_squares), tiles[k / kCodeGroup]);
  }
}

#else

// Never called.
template <typename T>
void code_tiles(const MatrixView& x, const QuantisedRows& to, std::int64_t row_begin, std::int64_t row_end);

#endif

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

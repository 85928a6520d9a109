// SPDX-License-Identifier: Apache-2.0
// Rows of x as CodeTiles (cpu/quantised_rows.h), sixteen at a time: what is reduced over a row's group is reduced for
// all of them at once. The codes are those of quantise_rows.cpp.
#pragma once

#include "cpu/isa/bfloat16.h"
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

// Of a row's group: what makes codes of it, and what codes are times of.
struct GroupScales {
  alignas(64) float inverse[16];
  alignas(64) float scale[16];
  alignas(64) float large_scale[16];
};

// The largest magnitudes of sixteen groups, as bits, which are in the order of what they stand for.
PAGED_INLINE GroupScales scales_of(__m512i largest, float smallest) {
  const __m512i some = _mm512_castps_si512(_mm512_set1_ps(smallest));
  const __mmask16 is_zero = _mm512_cmplt_epi32_mask(largest, some);
  const __mmask16 is_infinite = _mm512_cmpge_epi32_mask(largest, _mm512_set1_epi32(0x7f800000));
  __m512i exponent = _mm512_srli_epi32(_mm512_add_epi32(largest, _mm512_set1_epi32(0x1ffff)), 23);
  exponent = _mm512_mask_mov_epi32(exponent, is_zero, _mm512_set1_epi32(127));
  const __m512i inverse = _mm512_slli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(268), exponent), 23);
  const __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_sub_epi32(exponent, _mm512_set1_epi32(14)), 23));
  const __m512 marked = _mm512_mask_mov_ps(scale, is_infinite, _mm512_set1_ps(__builtin_nanf("")));
  GroupScales out;
  _mm512_store_si512(out.inverse, _mm512_maskz_mov_epi32(static_cast<__mmask16>(~is_zero), inverse));
  _mm512_store_ps(out.scale, marked);
  _mm512_store_ps(out.large_scale, _mm512_mul_ps(marked, _mm512_set1_ps(256.0f)));
  return out;
}

template <typename T>
PAGED_INLINE void code_tile(const T* const (&rows)[16], std::int64_t k, float smallest, CodeTile& tile) {
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
  const GroupScales scales = scales_of(_mm512_castps_si512(reduce_each(v, larger_of)), smallest);
  for (int r = 0; r < 16; ++r) {
    const F32 inverse = set1(scales.inverse[r]), scale = set1(scales.scale[r]),
              large_scale = set1(scales.large_scale[r]);
    const I32 first = round_to_int(load(rows[r] + k) * inverse),
              second = round_to_int(load(rows[r] + k + 16) * inverse);
    const auto high_of = [](I32 codes) { return shift_right_signed<8>(codes + set1_word(128)); };
    const I32 a = high_of(first), b = high_of(second);
    store_rounded(tile.high[r], int_to_float(a) * large_scale, int_to_float(b) * large_scale);
    store_rounded(tile.low[r], int_to_float(first - shift_left<8>(a)) * scale,
                  int_to_float(second - shift_left<8>(b)) * scale);
    v[r] = (int_to_float(first) + int_to_float(second)).v;
  }
  const __m512 sums = reduce_each(v, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
  _mm512_store_ps(tile.scaled_sums, _mm512_mul_ps(sums, _mm512_load_ps(scales.scale)));
}

// Rows [row_begin, row_end) of x, from a first row of a tile on. Rows that the last tile lacks repeat the last one.
template <typename T>
PAGED_INLINE void code_tiles(const MatrixView& x, const QuantisedRows& to, std::int64_t row_begin, std::int64_t row_end,
                             float smallest) {
  for (std::int64_t row = row_begin; row < row_end; row += 16) {
    const T* rows[16];
    for (int r = 0; r < 16; ++r) rows[r] = row_of<const T>(x, row + r < row_end ? row + r : row_end - 1);
    CodeTile* tiles = to.tiles() + (row - to.first_row) / 16 * to.tile_stride();
    for (std::int64_t k = 0; k < to.cols; k += kCodeGroup) code_tile(rows, k, smallest, tiles[k / kCodeGroup]);
  }
}

#else

// Never called.
template <typename T>
void code_tiles(const MatrixView& x, const QuantisedRows& to, std::int64_t row_begin, std::int64_t row_end,
                float smallest);

#endif

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

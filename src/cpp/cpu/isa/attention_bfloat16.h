// SPDX-License-Identifier: Apache-2.0
// Attention as products of bfloat16, where the cache is bfloat16 (and queries that or float32) or int8 (and queries
// bfloat16): bfloat16 keys lie as an instruction reads them, of values two keys are put side by side. Queries, and keys
// of int8, are rounded to bfloat16; codes of values are as they are, for their scales are in the exponentials. The
// exponentials are rounded to bfloat16 for the second product, not for their sum, as in FlashAttention; a row's sums
// are scaled anew only where its max grows by more than kSlack, as in FlashAttention 4. Whether an op is computed so
// depends on the op alone: a row's bits do not.
//
// The products themselves: attention_tiles.h by AMX, attention_pairs.h by AVX512-BF16.
#pragma once

#include "cpu/isa/attention_walk.h"
#include "cpu/isa/bfloat16.h"
#include "cpu/isa/rows.h"
#include "cpu/isa/tiles.h"
#include "cpu/isa/vec_math.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

// Caches whose elements can be multiplied as bfloat16.
template <typename C>
inline constexpr bool kPairsRead = false;
template <>
inline constexpr bool kPairsRead<BFloat16> = true;
template <>
inline constexpr bool kPairsRead<std::int8_t> = kHasTiles;  // elsewhere, rounding keys costs decoding more than is won

PAGED_INLINE bool pairs_take(const AttentionParams& op) {
  if (!kDotBf16 || op.cache.head_dim % 32 != 0) return false;
  if (op.cache.dtype == DType::kInt8) return kPairsRead<std::int8_t> && op.q.dtype == DType::kBFloat16;
  return op.cache.dtype == DType::kBFloat16 && op.q.dtype != DType::kFloat16;
}

// Exponentials may grow to e^kSlack before a row's sums are scaled anew.
constexpr float kSlack = 5.5f;
constexpr int kQuarters = kKeyTile / 16;
constexpr int kFewQueryRows = 32;

PAGED_INLINE BFloat16* rounded_queries(const Walk& walk) { return reinterpret_cast<BFloat16*>(walk.s.q); }

PAGED_INLINE void copy_queries(const Walk& walk) {
  with_type(walk.tile.op->q.dtype, [&](auto tag) {
    for (int row = 0; row < walk.num_rows; ++row) {
      const auto* q =
          row_of<const decltype(tag)>(walk.tile.op->q, walk.token(row)) + std::int64_t{walk.head(row)} * walk.head_dim;
      BFloat16* to = rounded_queries(walk) + row * walk.head_dim;
      for (int d = 0; d < walk.head_dim; d += 32) store_rounded(to + d, load(q + d), load(q + d + 16));
    }
  });
}

// The keys as scores are made of them: those of int8 in scratch, two components of a head side by side.
PAGED_INLINE KeyVectors<BFloat16> paired_keys(const Walk&, const KeyVectors<BFloat16>& keys) { return keys; }
PAGED_INLINE KeyVectors<BFloat16> paired_keys(const Walk& walk, const KeyVectors<std::int8_t>& keys) {
  constexpr int kCodes = kKeyTile * kMaxHeadDim;  // in front of s.keys, where they were gathered
  static_assert(sizeof(walk.s.keys) >= kCodes + kKeyTile * kMaxHeadDim * sizeof(BFloat16));
  KeyVectors<BFloat16> out;
  out.stride = 2 * kKeyTile;
  for (int i = 0; i < kKeyTile / 16; ++i) {
    BFloat16* to = reinterpret_cast<BFloat16*>(walk.s.keys + kCodes) + 2 * 16 * i;
    out.at[i] = to;
    for (int d = 0; d < walk.head_dim; d += 2, to += out.stride) {
      const F32 scale = load(walk.s.key_scales + d / kKeyScaleGroup * kKeyTile + 16 * i);
      interleave_scaled(keys.at[i] + d * keys.stride, keys.at[i] + (d + 1) * keys.stride, scale, to);
    }
  }
  return out;
}

// The value of a key of the tile. Outside the range it counts as zero: what lies there may not be numbers.
template <typename C>
PAGED_INLINE const C* value_at(const Walk& walk, Range in_tile, int key) {
  const bool outside = key < in_tile.begin || key >= in_tile.end;
  return reinterpret_cast<const C*>(outside ? walk.s.zeros : walk.s.values[key]);
}

// Meanwhile the keys and values that come next are asked for, if rows are few: many rows mean a prompt, whose
// other rows have just read them.
template <typename C>
PAGED_INLINE void pair_values(const Walk& walk, Range in_tile, const Coming& next) {
  const bool is_few = walk.num_rows <= kFewQueryRows;
  Ahead<C> next_keys(next, 0), next_values(next, 1);
  for (int key = 0; key < kKeyTile; key += 2) {
    const C* even = value_at<C>(walk, in_tile, key);
    const C* odd = value_at<C>(walk, in_tile, key + 1);
    BFloat16* to = walk.s.pairs + key * walk.head_dim;
    for (int d = 0; d < walk.head_dim; d += 32) {
      if (is_few) next_keys.fetch_lines(2), next_values.fetch_lines(2);
      interleave(even + d, odd + d, to + 2 * d);
    }
  }
}

constexpr float kLog2E = 1.44269504f;

// What follows from a row's max, -infinity where it has seen no key.
PAGED_INLINE void follow_max(AttentionScratch& s, int row) {
  const bool is_first = s.max[row] == -__builtin_inff();
  s.limit[row] = s.max[row] + kSlack, s.shift[row] = is_first ? 0.0f : -s.max[row] * kLog2E;
}
PAGED_INLINE void end_sums(const Walk& walk) {
  for (int row = 0; row < walk.num_rows; ++row) walk.s.sum[row] = reduce_add(load(walk.s.partial_sums + 16 * row));
}

// Of rows [row_begin, row_end): scores of keys that a row does not see -> -infinity.
void mask_scores(const Walk& walk, int row_begin, int row_end, int tile_begin, float* p) {
  for (int row = row_begin; row < row_end; ++row, p += kKeyTile) {
    const Range seen = walk.keys_of(row);
    if (seen.begin <= tile_begin && seen.end >= tile_begin + kKeyTile) continue;
    for (int i = 0; i < kKeyTile; i += 16)
      store(p + i, keep_lanes(load(p + i), seen.begin - tile_begin - i, seen.end - tile_begin - i, -__builtin_inff()));
  }
}

void cap_scores(const AttentionParams& op, int num_rows, float* p) {
  for (int i = 0; i < num_rows * kKeyTile; i += 16)
    store(p + i, set1(op.softcap) * tanh(load(p + i) * set1(op.scale) / set1(op.softcap)));
}

void raise_max(const Walk& walk, int row, float new_max) {
  AttentionScratch& s = walk.s;
  if (s.max[row] > -__builtin_inff()) {
    const F32 scale = set1(exp_scalar(s.max[row] - new_max));
    float* acc = s.acc + row * walk.head_stride;
    for (int d = 0; d < walk.head_dim; d += 16) store(acc + d, load(acc + d) * scale);
    store(s.partial_sums + 16 * row, load(s.partial_sums + 16 * row) * scale);
  }
  s.max[row] = new_max;
  follow_max(s, row);
}

// Scores of rows [row, row + 4), p, -> exponentials in bfloat16, times the values' scales where they have any.
// `factor`: of scores before their row's shift is added; powers of 2.
template <typename C>
PAGED_INLINE void weigh_four_rows(const Walk& walk, int row, float factor, const float* p, BFloat16* to) {
  AttentionScratch& s = walk.s;
  F32 largest[4];
  for (int r = 0; r < 4; ++r) {
    const float* of_row = p + r * kKeyTile;
    largest[r] = max(max(load(of_row), load(of_row + 16)), max(load(of_row + 32), load(of_row + 48)));
  }
  float maxima[4];
  if (__builtin_expect(reduce_rows(largest, factor / kLog2E, s.limit + row, maxima), 0))
    for (int r = 0; r < 4; ++r)
      if (maxima[r] > s.limit[row + r]) raise_max(walk, row + r, maxima[r]);
  for (int r = 0; r < 4; ++r) {
    const F32 shift = set1(s.shift[row + r]);
    F32 v[4];
    for (int i = 0; i < 4; ++i) v[i] = exp2_of_weights(fma(load(p + r * kKeyTile + 16 * i), set1(factor), shift));
    float* partial = s.partial_sums + 16 * (row + r);
    store(partial, load(partial) + ((v[0] + v[1]) + (v[2] + v[3])));
    if constexpr (kScaled<C>)
      for (int i = 0; i < 4; ++i) v[i] = v[i] * load(s.value_scales + 16 * i);
    store_rounded(to + r * kKeyTile, v[0], v[1]);
    store_rounded(to + r * kKeyTile + 32, v[2], v[3]);
  }
}

PAGED_INLINE float score_factor(const AttentionParams& op) { return (op.softcap > 0.0f ? 1.0f : op.scale) * kLog2E; }

// Rows [begin, end) of a walk.
struct RowBlock {
  int begin;
  int end;
};

// Blocks of so many rows, of which some row sees a key of the tile: neighbours, for rows come in the order of their
// positions.
template <int kRows>
struct RowBlocks {
  const Walk& walk;
  int tile_begin;

  PAGED_INLINE RowBlock at(int block) const { return {kRows * block, smaller(kRows * (block + 1), walk.num_rows)}; }
  PAGED_INLINE Range keys_of_first(int block) const { return walk.keys_of(at(block).begin); }
  PAGED_INLINE Range keys_of_last(int block) const { return walk.keys_of(at(block).end - 1); }
  PAGED_INLINE bool is_masked(int block) const {
    return keys_of_first(block).end < tile_begin + kKeyTile || keys_of_last(block).begin > tile_begin;
  }
  PAGED_INLINE Range visible() const {
    Range found{0, (walk.num_rows + kRows - 1) / kRows};
    while (found.begin < found.end && keys_of_last(found.begin).end <= tile_begin) ++found.begin;
    while (found.begin < found.end && keys_of_first(found.end - 1).begin >= tile_begin + kKeyTile) --found.end;
    return found;
  }
  // Caps and masks a block's scores, where they want it.
  PAGED_INLINE void finish_scores(int block, float* p) const {
    const RowBlock rows = at(block);
    if (walk.tile.op->softcap > 0.0f) cap_scores(*walk.tile.op, kRows, p);
    if (is_masked(block)) mask_scores(walk, rows.begin, rows.end, tile_begin, p);
  }
};

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

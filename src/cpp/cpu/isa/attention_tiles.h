// SPDX-License-Identifier: Apache-2.0
// The two products of a tile of keys by AMX, where queries are bfloat16 and the cache bfloat16 or int8: bfloat16 keys
// lie as an instruction reads them, of values two keys are put side by side. Keys of int8 are rounded to bfloat16;
// codes of values are as they are, for their scales are in the exponentials. The exponentials are rounded to bfloat16
// for the second product, not for their sum, as in FlashAttention. Whether tiles are used depends on the op alone: a
// row's bits do not.
#pragma once

#include "cpu/isa/attention_walk.h"
#include "cpu/isa/tiles.h"
#include "cpu/isa/vec_math.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

// Caches whose elements tiles can multiply.
template <typename C>
inline constexpr bool kTilesRead = false;
template <>
inline constexpr bool kTilesRead<BFloat16> = true;
template <>
inline constexpr bool kTilesRead<std::int8_t> = true;

PAGED_INLINE bool tiles_take(const AttentionParams& op) {
  return kHasTiles && op.q.dtype == DType::kBFloat16 && op.cache.head_dim % kTileK == 0 &&
         (op.cache.dtype == DType::kBFloat16 || op.cache.dtype == DType::kInt8);
}

// Rows past the last one are computed too, from whatever is there, and nobody looks at them.
PAGED_INLINE int row_tiles(const Walk& walk) { return (walk.num_rows + 15) / 16; }

PAGED_INLINE BFloat16* tiled_queries(const Walk& walk) { return reinterpret_cast<BFloat16*>(walk.s.q); }

PAGED_INLINE void copy_queries(const Walk& walk) {
  for (int row = 0; row < walk.num_rows; ++row) {
    const auto* q = static_cast<const BFloat16*>(walk.tile.op->q.data) + walk.token(row) * walk.tile.op->q.row_stride +
                    std::int64_t{walk.head(row)} * walk.head_dim;
    __builtin_memcpy(tiled_queries(walk) + row * walk.head_dim, q, static_cast<unsigned long>(walk.head_dim) * 2);
  }
}

// p = q @ keys, not yet scaled.
PAGED_INLINE void score_tiles(const Walk& walk, const KeyVectors<BFloat16>& keys) {
  const auto at = [&](int i) { return reinterpret_cast<const std::byte*>(keys.at[i]); };
  for (int t = 0; t < row_tiles(walk); ++t) {
    float* p = walk.s.p + t * 16 * kKeyTile;
    multiply_one_by_four({.a = reinterpret_cast<const std::byte*>(tiled_queries(walk) + t * 16 * walk.head_dim),
                          .a_bytes = std::int64_t{walk.head_dim} * 2,
                          .a_step = kTileBytes,
                          .b = {at(0), at(1), at(2), at(3)},
                          .b_bytes = keys.stride * 2,
                          .c = {p, p + 16, p + 32, p + 48},
                          .c_bytes = kKeyTile * 4,
                          .steps = walk.head_dim / kTileK,
                          .onto = false});
  }
}

// The keys as score_tiles reads them: those of int8 in scratch, two components of a head side by side.
PAGED_INLINE KeyVectors<BFloat16> tiled_keys(const Walk&, const KeyVectors<BFloat16>& keys) { return keys; }
PAGED_INLINE KeyVectors<BFloat16> tiled_keys(const Walk& walk, const KeyVectors<std::int8_t>& keys) {
  // Codes that were gathered lie in s.keys; pairs of values come after the scores.
  KeyVectors<BFloat16> out;
  out.stride = 2 * kKeyTile;
  for (int i = 0; i < kKeyTile / 16; ++i) {
    BFloat16* to = walk.s.pairs + 2 * 16 * i;
    out.at[i] = to;
    for (int d = 0; d < walk.head_dim; d += 2, to += out.stride) {
      const F32 scale = load(walk.s.key_scales + d / kKeyScaleGroup * kKeyTile + 16 * i);
      interleave_scaled(keys.at[i] + d * keys.stride, keys.at[i] + (d + 1) * keys.stride, scale, to);
    }
  }
  return out;
}

// Scores of row r -> exponentials in bfloat16, times the values' scales where they have any; updates the row's max, sum
// and the factor its accumulators are scaled by. Exponentials need no more digits than bfloat16 leaves of them.
template <typename C>
PAGED_INLINE void softmax_row_tiled(const Walk& walk, int row, int tile_begin) {
  constexpr float kLog2E = 1.44269504f;
  AttentionScratch& s = walk.s;
  const AttentionParams& op = *walk.tile.op;
  const float* p = s.p + row * kKeyTile;
  BFloat16* rounded = s.rounded + row * kKeyTile;
  const Range keys = walk.keys_of(row);
  const int begin = larger(keys.begin - tile_begin, 0), end = smaller(keys.end - tile_begin, kKeyTile);
  s.scale[row] = 1.0f;
  if (begin >= end) {
    __builtin_memset(rounded, 0, kKeyTile * sizeof(BFloat16));
    return;
  }
  F32 v[kKeyTile / 16];
  float scale = op.scale;
  for (int i = 0; i < kKeyTile / 16; ++i) {
    v[i] = load(p + 16 * i);
    if (op.softcap > 0.0f) v[i] = set1(op.softcap) * tanh(v[i] * set1(op.scale) / set1(op.softcap));
    if (begin > 0 || end < kKeyTile) v[i] = keep_lanes(v[i], begin - 16 * i, end - 16 * i, -__builtin_inff());
  }
  if (op.softcap > 0.0f) scale = 1.0f;
  const float tile_max = scale * reduce_max(max(max(v[0], v[1]), max(v[2], v[3])));
  const float new_max = tile_max > s.max[row] ? tile_max : s.max[row];
  for (int i = 0; i < kKeyTile / 16; ++i) {
    v[i] = exp2_of_weights(fma(v[i], set1(scale * kLog2E), set1(-new_max * kLog2E)));
    store_rounded(rounded + 16 * i, kScaled<C> ? v[i] * load(s.value_scales + 16 * i) : v[i]);
  }
  const F32 sum = (v[0] + v[1]) + (v[2] + v[3]);
  s.scale[row] = s.max[row] == new_max ? 1.0f : exp_scalar(s.max[row] - new_max);
  float* partial = s.partial_sums + 16 * row;
  store(partial, fma(load(partial), set1(s.scale[row]), sum));
  s.max[row] = new_max;
}

PAGED_INLINE void begin_sums(const Walk& walk) {
  for (int row = 0; row < walk.num_rows; ++row) store(walk.s.partial_sums + 16 * row, zero());
}
PAGED_INLINE void end_sums(const Walk& walk) {
  for (int row = 0; row < walk.num_rows; ++row) walk.s.sum[row] = reduce_add(load(walk.s.partial_sums + 16 * row));
}

// Values outside the range count as zero: what lies there may not be numbers. Meanwhile the keys and values of the
// range `next` are asked for.
template <typename C>
PAGED_INLINE void pair_values(const Walk& walk, Range in_tile, Range next) {
  const int lines = walk.head_dim / 16;  // of two keys or values in bfloat16; head_dim is a multiple of 32
  Ahead<C> next_keys(walk, next, 0), next_values(walk, next, 1);
  const auto value = [&](int key) {
    const bool outside = key < in_tile.begin || key >= in_tile.end;
    return reinterpret_cast<const C*>(outside ? walk.s.zeros : walk.s.values[key]);
  };
  for (int key = 0; key < kKeyTile; key += 2) {
    const C* even = value(key);
    const C* odd = value(key + 1);
    BFloat16* to = walk.s.pairs + key * walk.head_dim;
    next_keys.fetch_lines(lines);
    next_values.fetch_lines(lines);
    for (int d = 0; d < walk.head_dim; d += 16) interleave(even + d, odd + d, to + 2 * d);
  }
}

// acc = acc * scale + p @ values.
PAGED_INLINE void value_tiles(const Walk& walk) {
  AttentionScratch& s = walk.s;
  for (int row = 0; row < walk.num_rows; ++row) {
    float* acc = s.acc + row * walk.head_stride;
    if (s.scale[row] == 1.0f) continue;
    for (int d = 0; d < walk.head_dim; d += 16) store(acc + d, load(acc + d) * set1(s.scale[row]));
  }
  for (int t = 0; t < row_tiles(walk); ++t) {
    TileProduct product{.a = reinterpret_cast<const std::byte*>(s.rounded + t * 16 * kKeyTile),
                        .a_bytes = kKeyTile * 2,
                        .a_step = kTileBytes,
                        .b = {},
                        .b_bytes = std::int64_t{walk.head_dim} * 4,
                        .c = {},
                        .c_bytes = std::int64_t{walk.head_stride} * 4,
                        .steps = kKeyTile / kTileK,
                        .onto = true};
    const auto take = [&](int d, int count) {
      for (int i = 0; i < count; ++i) {
        product.b[i] = reinterpret_cast<const std::byte*>(s.pairs + 2 * (d + 16 * i));
        product.c[i] = s.acc + t * 16 * walk.head_stride + d + 16 * i;
      }
    };
    int d = 0;
    for (; d + 64 <= walk.head_dim; d += 64) {
      take(d, 4);
      multiply_one_by_four(product);
    }
    for (; d < walk.head_dim; d += 16) {
      take(d, 1);
      multiply_one_by_one(product);
    }
  }
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

// SPDX-License-Identifier: Apache-2.0
// The two products of a tile of keys by AMX, where queries are bfloat16 and the cache bfloat16 or int8: bfloat16 keys
// lie as an instruction reads them, of values two keys are put side by side. Keys of int8 are rounded to bfloat16;
// codes of values are as they are, for their scales are in the exponentials. The exponentials are rounded to bfloat16
// for the second product, not for their sum, as in FlashAttention; a row's sums are scaled anew only where its max
// grows by more than kSlack, as in FlashAttention 4. Whether tiles are used depends on the op alone: a row's bits do
// not.
//
// Sixteen rows are a tile. The products of a tile wait for one another and for memory, the exponentials for neither: so
// scores of the next tile, exponentials of this one and values of the one before are computed in turn, a quarter each.
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

// Exponentials may grow to e^kSlack before a row's sums are scaled anew.
constexpr float kSlack = 5.5f;
constexpr int kQuarters = kKeyTile / 16;

// Registers: 0 and 1 for what is summed up, 2 and 3 for keys and values, 4 to 7 for queries and exponentials. Rows past
// the last one are computed too, from whatever is there, and nobody looks at them.
PAGED_INLINE TileShapes attention_shapes(int num_rows) {
  TileShapes shapes;
  for (int tile = 0; tile < 8; ++tile) shapes.set(tile, tile == 2 || tile == 3 ? 16 : smaller(num_rows, 16));
  return shapes;
}

PAGED_INLINE BFloat16* tiled_queries(const Walk& walk) { return reinterpret_cast<BFloat16*>(walk.s.q); }

PAGED_INLINE void copy_queries(const Walk& walk) {
  for (int row = 0; row < walk.num_rows; ++row) {
    const auto* q = static_cast<const BFloat16*>(walk.tile.op->q.data) + walk.token(row) * walk.tile.op->q.row_stride +
                    std::int64_t{walk.head(row)} * walk.head_dim;
    __builtin_memcpy(tiled_queries(walk) + row * walk.head_dim, q, static_cast<unsigned long>(walk.head_dim) * 2);
  }
}

// The keys as scores are made of them: those of int8 in scratch, two components of a head side by side.
PAGED_INLINE KeyVectors<BFloat16> tiled_keys(const Walk&, const KeyVectors<BFloat16>& keys) { return keys; }
PAGED_INLINE KeyVectors<BFloat16> tiled_keys(const Walk& walk, const KeyVectors<std::int8_t>& keys) {
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
    for (int d = 0; d < walk.head_dim; d += 32) interleave(even + d, odd + d, to + 2 * d);
  }
}

PAGED_INLINE void begin_sums(const Walk& walk) {
  for (int row = 0; row < walk.num_rows; ++row) {
    store(walk.s.partial_sums + 16 * row, zero());
    walk.s.shift[row] = 0.0f, walk.s.limit[row] = -__builtin_inff();
  }
}
PAGED_INLINE void end_sums(const Walk& walk) {
  for (int row = 0; row < walk.num_rows; ++row) walk.s.sum[row] = reduce_add(load(walk.s.partial_sums + 16 * row));
}

// The rows by one tile of keys.
template <typename C>
struct TiledStep {
  const Walk& walk;
  KeyVectors<BFloat16> keys;
  int tile_begin;
  float factor;  // of scores, before shift is added: powers of e

  PAGED_INLINE float* scores(int t) const { return walk.s.p + t % 2 * 16 * kKeyTile; }
  PAGED_INLINE BFloat16* weights(int t) const { return walk.s.rounded + t % 2 * 16 * kKeyTile; }

  // Rows 16 t and up by 16 keys.
  PAGED_INLINE void score(int t, int quarter) const {
    const auto* q = reinterpret_cast<const std::byte*>(tiled_queries(walk) + t * 16 * walk.head_dim);
    const auto* k = reinterpret_cast<const std::byte*>(keys.at[quarter]);
    clear_tile<0>();
    for (int d = 0; d < walk.head_dim; d += kTileK) {
      load_tile<4>(q + d * 2, std::int64_t{walk.head_dim} * 2);
      load_tile<2>(k + d * keys.stride, keys.stride * 2);
      multiply_pairs_onto<0, 4, 2>();
    }
    store_tile<0>(scores(t) + 16 * quarter, kKeyTile * 4);
  }

  // acc += weights @ values, for every fourth 16 components from 16 * quarter on.
  PAGED_INLINE void add_values(int t, int quarter) const {
    if (quarter == 0) {
      load_tile<6>(weights(t), kKeyTile * 2);
      load_tile<7>(weights(t) + kTileK, kKeyTile * 2);
    }
    const std::int64_t stride = std::int64_t{walk.head_dim} * 4;
    for (int d = 16 * quarter; d < walk.head_dim; d += 16 * kQuarters) {
      float* acc = walk.s.acc + t * 16 * walk.head_stride + d;
      load_tile<1>(acc, stride);
      load_tile<2>(walk.s.pairs + 2 * d, stride);
      multiply_pairs_onto<1, 6, 2>();
      load_tile<3>(walk.s.pairs + 2 * d + kTileK * walk.head_dim, stride);
      multiply_pairs_onto<1, 7, 3>();
      store_tile<1>(acc, stride);
    }
  }

  void raise(int row, float new_max) const {
    constexpr float kLog2E = 1.44269504f;
    AttentionScratch& s = walk.s;
    if (s.max[row] > -__builtin_inff()) {
      const F32 scale = set1(exp_scalar(s.max[row] - new_max));
      float* acc = s.acc + row * walk.head_stride;
      for (int d = 0; d < walk.head_dim; d += 16) store(acc + d, load(acc + d) * scale);
      store(s.partial_sums + 16 * row, load(s.partial_sums + 16 * row) * scale);
    }
    s.max[row] = new_max, s.limit[row] = new_max + kSlack, s.shift[row] = -new_max * kLog2E;
  }

  // Scores of four rows -> exponentials in bfloat16, times the values' scales where they have any.
  PAGED_INLINE void softmax(int t, int quarter, bool masked) const {
    constexpr float kLog2E = 1.44269504f;
    AttentionScratch& s = walk.s;
    const int row = 16 * t + 4 * quarter;
    float* p = scores(t) + 4 * quarter * kKeyTile;
    F32 largest[4];
    for (int r = 0; r < 4; ++r, p += kKeyTile) {
      if (masked) mask(row + r, p);
      largest[r] = max(max(load(p), load(p + 16)), max(load(p + 32), load(p + 48)));
    }
    float maxima[4];
    if (reduce_rows(largest, factor, s.limit + row, maxima))
      for (int r = 0; r < 4; ++r)
        if (maxima[r] > s.limit[row + r]) raise(row + r, maxima[r]);
    p -= 4 * kKeyTile;
    BFloat16* to = weights(t) + 4 * quarter * kKeyTile;
    for (int r = 0; r < 4; ++r, p += kKeyTile, to += kKeyTile) {
      F32 v[4];
      for (int i = 0; i < 4; ++i)
        v[i] = exp2_of_weights(fma(load(p + 16 * i), set1(factor * kLog2E), set1(s.shift[row + r])));
      float* partial = s.partial_sums + 16 * (row + r);
      store(partial, load(partial) + ((v[0] + v[1]) + (v[2] + v[3])));
      if constexpr (kScaled<C>)
        for (int i = 0; i < 4; ++i) v[i] = v[i] * load(s.value_scales + 16 * i);
      store_rounded(to, v[0], v[1]);
      store_rounded(to + 32, v[2], v[3]);
    }
  }

  // Scores of keys that the row does not see -> -infinity.
  PAGED_INLINE void mask(int row, float* p) const {
    const Range seen = walk.keys_of(row);
    for (int i = 0; i < kKeyTile; i += 16)
      store(p + i, keep_lanes(load(p + i), seen.begin - tile_begin - i, seen.end - tile_begin - i, -__builtin_inff()));
  }

  void cap_scores(int t) const {
    const AttentionParams& op = *walk.tile.op;
    for (int i = 0; i < 16 * kKeyTile; i += 16) {
      float* p = scores(t) + i;
      store(p, set1(op.softcap) * tanh(load(p) * set1(op.scale) / set1(op.softcap)));
    }
  }

  PAGED_INLINE int last_row(int t) const { return smaller(16 * t + 16, walk.num_rows) - 1; }
  PAGED_INLINE bool is_masked(int t) const {
    return walk.keys_of(16 * t).end < tile_begin + kKeyTile || walk.keys_of(last_row(t)).begin > tile_begin;
  }

  // Tiles of rows of which some see a key of the tile: neighbours, for rows come in the order of their positions.
  PAGED_INLINE Range row_tiles() const {
    Range tiles{0, (walk.num_rows + 15) / 16};
    while (tiles.begin < tiles.end && walk.keys_of(last_row(tiles.begin)).end <= tile_begin) ++tiles.begin;
    while (tiles.begin < tiles.end && walk.keys_of(16 * (tiles.end - 1)).begin >= tile_begin + kKeyTile) --tiles.end;
    return tiles;
  }

  void run() const {
    const Range tiles = row_tiles();
    for (int quarter = 0; quarter < kQuarters && tiles.begin < tiles.end; ++quarter) score(tiles.begin, quarter);
    for (int t = tiles.begin; t < tiles.end; ++t) {
      if (walk.tile.op->softcap > 0.0f) cap_scores(t);
      const bool masked = is_masked(t);
      for (int quarter = 0; quarter < kQuarters; ++quarter) {
        if (t + 1 < tiles.end) score(t + 1, quarter);
        if (t > tiles.begin) add_values(t - 1, quarter);
        if (16 * t + 4 * quarter < walk.num_rows) softmax(t, quarter, masked);
      }
    }
    for (int quarter = 0; quarter < kQuarters && tiles.begin < tiles.end; ++quarter) add_values(tiles.end - 1, quarter);
  }
};

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

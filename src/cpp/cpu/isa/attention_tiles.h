// SPDX-License-Identifier: Apache-2.0
// The two products of a tile of keys by AMX, where the cache is bfloat16 (and queries that or float32) or int8 (and
// queries bfloat16): bfloat16 keys lie as an instruction reads them, of values two keys are put side by side. Queries,
// and keys of int8, are rounded to bfloat16; codes of values are as they are, for their scales are in the exponentials.
// The exponentials are rounded to bfloat16 for the second product, not for their sum, as in FlashAttention; a row's
// sums are scaled anew only where its max grows by more than kSlack, as in FlashAttention 4. Whether tiles are used
// depends on the op alone: a row's bits do not.
//
// Two tiles of rows are a block. The products of a block wait for one another and for memory, the exponentials for
// neither: so four rows' exponentials stand between the scores of sixteen keys by the next block, or the sums of
// sixteen components of the block before.
#pragma once

#include "cpu/isa/attention_walk.h"
#include "cpu/isa/rows.h"
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
  if (!kHasTiles || op.cache.head_dim % kTileK != 0) return false;
  if (op.cache.dtype == DType::kInt8) return op.q.dtype == DType::kBFloat16;
  return op.cache.dtype == DType::kBFloat16 && op.q.dtype != DType::kFloat16;
}

// Exponentials may grow to e^kSlack before a row's sums are scaled anew.
constexpr float kSlack = 5.5f;
constexpr int kQuarters = kKeyTile / 16;
constexpr int kBlockRows = 32;

// Registers: 0 and 1 for what is summed up, 2 and 3 for keys and values, 4 to 7 for queries and exponentials. Rows past
// the last one are computed too, from whatever is there, and nobody looks at them.
PAGED_INLINE TileShapes attention_shapes(int num_rows) {
  TileShapes shapes;
  for (int tile = 0; tile < 8; ++tile) shapes.set(tile, tile == 2 || tile == 3 ? 16 : smaller(num_rows, 16));
  return shapes;
}

PAGED_INLINE BFloat16* tiled_queries(const Walk& walk) { return reinterpret_cast<BFloat16*>(walk.s.q); }

PAGED_INLINE void copy_queries(const Walk& walk) {
  with_type(walk.tile.op->q.dtype, [&](auto tag) {
    for (int row = 0; row < walk.num_rows; ++row) {
      const auto* q =
          row_of<const decltype(tag)>(walk.tile.op->q, walk.token(row)) + std::int64_t{walk.head(row)} * walk.head_dim;
      BFloat16* to = tiled_queries(walk) + row * walk.head_dim;
      for (int d = 0; d < walk.head_dim; d += 32) store_rounded(to + d, load(q + d), load(q + d + 16));
    }
  });
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
// range `next` are asked for, if rows are few: many rows mean a prompt, whose other rows have just read them.
template <typename C>
PAGED_INLINE void pair_values(const Walk& walk, Range in_tile, Range next) {
  // Of two keys or values in bfloat16; head_dim is a multiple of 32.
  const int lines = walk.num_rows > kBlockRows ? 0 : walk.head_dim / 16;
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

// Of a block: scores of keys that a row does not see -> -infinity.
void mask_scores(const Walk& walk, int first_row, int tile_begin, float* p) {
  const int end = smaller(first_row + kBlockRows, walk.num_rows);
  for (int row = first_row; row < end; ++row, p += kKeyTile) {
    const Range seen = walk.keys_of(row);
    if (seen.begin <= tile_begin && seen.end >= tile_begin + kKeyTile) continue;
    for (int i = 0; i < kKeyTile; i += 16)
      store(p + i, keep_lanes(load(p + i), seen.begin - tile_begin - i, seen.end - tile_begin - i, -__builtin_inff()));
  }
}

// Of a block.
void cap_scores(const AttentionParams& op, float* p) {
  for (int i = 0; i < kBlockRows * kKeyTile; i += 16)
    store(p + i, set1(op.softcap) * tanh(load(p + i) * set1(op.scale) / set1(op.softcap)));
}

constexpr float kLog2E = 1.44269504f;

void raise_max(const Walk& walk, int row, float new_max) {
  AttentionScratch& s = walk.s;
  if (s.max[row] > -__builtin_inff()) {
    const F32 scale = set1(exp_scalar(s.max[row] - new_max));
    float* acc = s.acc + row * walk.head_stride;
    for (int d = 0; d < walk.head_dim; d += 16) store(acc + d, load(acc + d) * scale);
    store(s.partial_sums + 16 * row, load(s.partial_sums + 16 * row) * scale);
  }
  s.max[row] = new_max, s.limit[row] = new_max + kSlack, s.shift[row] = -new_max * kLog2E;
}

// The rows by one tile of keys. What every instruction needs is a value here: the compiler cannot know that tiles are
// not stored over what a pointer leads to. kHeadDim: head_dim, or 0 for any.
template <typename C, int kHeadDim>
struct TiledStep {
  const Walk& walk;
  const std::byte* keys[kQuarters];
  std::int64_t key_bytes;  // from one pair of components to the next
  int tile_begin;
  float factor;  // of scores before their row's shift is added: powers of 2
  std::int64_t any_head_dim = walk.head_dim;
  std::int64_t num_rows = walk.num_rows;
  const BFloat16* queries = tiled_queries(walk);
  float* scores = walk.s.p;  // of two blocks by turns, like their weights
  BFloat16* weights = walk.s.rounded;
  const BFloat16* pairs = walk.s.pairs;
  float* acc = walk.s.acc;
  static constexpr int kBlock = kBlockRows * kKeyTile;

  PAGED_INLINE std::int64_t head_dim() const { return kHeadDim != 0 ? kHeadDim : any_head_dim; }
  PAGED_INLINE float* scores_of(int block) const { return scores + block % 2 * kBlock; }
  PAGED_INLINE BFloat16* weights_of(int block) const { return weights + block % 2 * kBlock; }
  PAGED_INLINE const BFloat16* queries_of(int block) const { return queries + block * kBlockRows * head_dim(); }
  PAGED_INLINE float* sums_of(int block, std::int64_t d) const { return acc + block * kBlockRows * head_dim() + d; }
  PAGED_INLINE bool is_pair(int block) const { return num_rows - block * kBlockRows > 16; }

  // Where they fit, queries stay in their registers.
  PAGED_INLINE void load_queries(int block) const {
    if constexpr (kHeadDim != 2 * kTileK) return;
    const BFloat16* q = queries_of(block);
    load_tile<4>(q, head_dim() * 2);
    load_tile<5>(q + kTileK, head_dim() * 2);
    if (!is_pair(block)) return;
    load_tile<6>(q + 16 * head_dim(), head_dim() * 2);
    load_tile<7>(q + 16 * head_dim() + kTileK, head_dim() * 2);
  }

  // The rows by 16 keys, in registers 0 and 1.
  PAGED_INLINE void begin_scores(int block, int quarter) const {
    const BFloat16* q = queries_of(block);
    const std::byte* k = keys[quarter];
    const bool pair = is_pair(block);
    clear_tile<0>(), clear_tile<1>();
    if constexpr (kHeadDim == 2 * kTileK) {
      load_tile<2>(k, key_bytes);
      multiply_pairs_onto<0, 4, 2>();
      if (pair) multiply_pairs_onto<1, 6, 2>();
      load_tile<3>(k + 16 * key_bytes, key_bytes);
      multiply_pairs_onto<0, 5, 3>();
      if (pair) multiply_pairs_onto<1, 7, 3>();
      return;
    }
    for (std::int64_t d = 0; d < head_dim(); d += kTileK) {
      load_tile<4>(q + d, head_dim() * 2);
      load_tile<2>(k + d / 2 * key_bytes, key_bytes);
      multiply_pairs_onto<0, 4, 2>();
      if (!pair) continue;
      load_tile<6>(q + 16 * head_dim() + d, head_dim() * 2);
      multiply_pairs_onto<1, 6, 2>();
    }
  }
  PAGED_INLINE void end_scores(int block, int quarter) const {
    store_tile<0>(scores_of(block) + 16 * quarter, kKeyTile * 4);
    if (is_pair(block)) store_tile<1>(scores_of(block) + 16 * kKeyTile + 16 * quarter, kKeyTile * 4);
  }

  PAGED_INLINE void load_weights(int block) const {
    load_tile<4>(weights_of(block), kKeyTile * 2);
    load_tile<5>(weights_of(block) + kTileK, kKeyTile * 2);
    if (!is_pair(block)) return;
    load_tile<6>(weights_of(block) + 16 * kKeyTile, kKeyTile * 2);
    load_tile<7>(weights_of(block) + 16 * kKeyTile + kTileK, kKeyTile * 2);
  }

  // acc += weights @ values, for every fourth 16 components from 16 * quarter on. The last of them stay in registers.
  PAGED_INLINE void begin_values(int block, int quarter) const {
    const bool pair = is_pair(block);
    for (std::int64_t d = 16 * quarter; d < head_dim(); d += 16 * kQuarters) {
      if (d >= 16 * kQuarters) store_sums_of(block, d - 16 * kQuarters);
      load_tile<0>(sums_of(block, d), head_dim() * 4);
      if (pair) load_tile<1>(sums_of(block, d) + 16 * head_dim(), head_dim() * 4);
      load_tile<2>(pairs + 2 * d, head_dim() * 4);
      multiply_pairs_onto<0, 4, 2>();
      if (pair) multiply_pairs_onto<1, 6, 2>();
      load_tile<3>(pairs + 2 * d + kTileK * head_dim(), head_dim() * 4);
      multiply_pairs_onto<0, 5, 3>();
      if (pair) multiply_pairs_onto<1, 7, 3>();
    }
  }
  PAGED_INLINE void end_values(int block, int quarter) const {
    const std::int64_t first = 16 * quarter, all = 16 * kQuarters;
    if (first < head_dim()) store_sums_of(block, first + (head_dim() - first - 1) / all * all);
  }
  PAGED_INLINE void store_sums_of(int block, std::int64_t d) const {
    store_tile<0>(sums_of(block, d), head_dim() * 4);
    if (is_pair(block)) store_tile<1>(sums_of(block, d) + 16 * head_dim(), head_dim() * 4);
  }

  // Scores of four rows -> exponentials in bfloat16, times the values' scales where they have any.
  PAGED_INLINE void softmax(int block, int four) const {
    AttentionScratch& s = walk.s;
    const int row = kBlockRows * block + 4 * four;
    if (row >= num_rows) return;
    const float* p = scores_of(block) + 4 * four * kKeyTile;
    F32 largest[4];
    for (int r = 0; r < 4; ++r) {
      const float* of_row = p + r * kKeyTile;
      largest[r] = max(max(load(of_row), load(of_row + 16)), max(load(of_row + 32), load(of_row + 48)));
    }
    float maxima[4];
    if (__builtin_expect(reduce_rows(largest, factor / kLog2E, s.limit + row, maxima), 0))
      for (int r = 0; r < 4; ++r)
        if (maxima[r] > s.limit[row + r]) raise_max(walk, row + r, maxima[r]);
    BFloat16* to = weights_of(block) + 4 * four * kKeyTile;
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

  PAGED_INLINE Range keys_of_first(int block) const { return walk.keys_of(kBlockRows * block); }
  PAGED_INLINE Range keys_of_last(int block) const {
    return walk.keys_of(smaller(kBlockRows * (block + 1), walk.num_rows) - 1);
  }

  // Blocks of which some row sees a key of the tile: neighbours, for rows come in the order of their positions.
  PAGED_INLINE Range blocks() const {
    Range found{0, (walk.num_rows + kBlockRows - 1) / kBlockRows};
    while (found.begin < found.end && keys_of_last(found.begin).end <= tile_begin) ++found.begin;
    while (found.begin < found.end && keys_of_first(found.end - 1).begin >= tile_begin + kKeyTile) --found.end;
    return found;
  }

  PAGED_INLINE void begin(int block) const {
    load_queries(block);
    for (int quarter = 0; quarter < kQuarters; ++quarter) begin_scores(block, quarter), end_scores(block, quarter);
  }

  PAGED_INLINE void run(Range found) const {
    for (int block = found.begin; block < found.end; ++block) {
      if (walk.tile.op->softcap > 0.0f) cap_scores(*walk.tile.op, scores_of(block));
      if (keys_of_first(block).end < tile_begin + kKeyTile || keys_of_last(block).begin > tile_begin)
        mask_scores(walk, block * kBlockRows, tile_begin, scores_of(block));
      const bool has_next = block + 1 < found.end, has_last = block > found.begin;
      if (has_next) load_queries(block + 1);
      for (int quarter = 0; quarter < kQuarters; ++quarter) {
        if (has_next) begin_scores(block + 1, quarter);
        softmax(block, quarter);
        if (has_next) end_scores(block + 1, quarter);
      }
      if (has_last) load_weights(block - 1);
      for (int quarter = 0; quarter < kQuarters; ++quarter) {
        if (has_last) begin_values(block - 1, quarter);
        softmax(block, kQuarters + quarter);
        if (has_last) end_values(block - 1, quarter);
      }
    }
    load_weights(found.end - 1);
    for (int quarter = 0; quarter < kQuarters; ++quarter)
      begin_values(found.end - 1, quarter), end_values(found.end - 1, quarter);
  }
};

// One step of the online softmax. `next` is the range of the following step.
template <typename C, int kHeadDim>
void visit_keys_tiled(const Walk& walk, Range range, Range next) {
  const AttentionParams& op = *walk.tile.op;
  const int tile_begin = range.begin / kKeyTile * kKeyTile;
  find_scales<C>(walk, tile_begin, range);
  const KeyVectors<BFloat16> keys = tiled_keys(walk, key_vectors<C>(walk, tile_begin, range));
  TiledStep<C, kHeadDim> step{walk, {}, keys.stride * 2, tile_begin, (op.softcap > 0.0f ? 1.0f : op.scale) * kLog2E};
  for (int i = 0; i < kQuarters; ++i) step.keys[i] = reinterpret_cast<const std::byte*>(keys.at[i]);
  const Range blocks = step.blocks();
  if (blocks.begin == blocks.end) return;
  step.begin(blocks.begin);
  find_values<C>(walk, tile_begin, range, walk.s.values);
  pair_values<C>(walk, {range.begin - tile_begin, range.end - tile_begin}, next);
  step.run(blocks);
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

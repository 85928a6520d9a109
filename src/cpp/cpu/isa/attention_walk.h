// SPDX-License-Identifier: Apache-2.0
// What an attention tile works on: its scratch, its rows, and where the keys and values of a step lie.
#pragma once

#include "cpu/isa/rows.h"
#include "cpu/isa/vec.h"
#include "cpu/kernel_table.h"
#include "cpu/kv_layout.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

// Row r of a tile is query token r / num_heads, head r % num_heads. head_stride: head_dim rounded up to 16.
struct AttentionScratch {
  alignas(64) float q[kMaxQueryFloats];
  alignas(64) float acc[kMaxQueryFloats];         // of the chunk
  alignas(64) float total[kMaxQueryFloats];       // of the chunks before
  alignas(64) float p[kMaxQueryRows * kKeyTile];  // scores, then their exponentials
  alignas(64) std::byte keys[kKeyTile * kMaxHeadDim * sizeof(float)];
  float max[kMaxQueryRows], sum[kMaxQueryRows], scale[kMaxQueryRows];
  float total_max[kMaxQueryRows], total_sum[kMaxQueryRows];
  const std::byte* values[kKeyTile];
  // Of an int8 cache: of each group of components, and of values.
  alignas(64) float key_scales[kMaxHeadDim / kKeyScaleGroup * kKeyTile], value_scales[kKeyTile];
  // For attention_bfloat16.h: exponentials in bfloat16 of two blocks of rows, sixteen parts of each row's sum, what is
  // added to a row's scores and what they may reach before its max is raised, the values of two keys side by side, and
  // a value of zeros.
  alignas(64) BFloat16 rounded[2 * 32 * kKeyTile];
  alignas(64) float partial_sums[kMaxQueryRows * 16];
  alignas(64) float shift[kMaxQueryRows], limit[kMaxQueryRows];
  alignas(64) BFloat16 pairs[kKeyTile * kMaxHeadDim];
  alignas(64) std::byte zeros[kMaxHeadDim * sizeof(BFloat16)];
};
static_assert(sizeof(AttentionScratch) <= 512 * 1024);

struct Range {
  int begin;
  int end;
};

// The part of `keys` in the tile that begins at `tile_begin`.
PAGED_INLINE Range clip(Range keys, int tile_begin) {
  return {larger(keys.begin, tile_begin), smaller(keys.end, tile_begin + kKeyTile)};
}

struct Walk {
  const AttentionTile& tile;
  AttentionScratch& s;
  const std::int32_t* block_table;
  int num_rows;
  int head_dim;
  int head_stride;
  int position;  // of the tile's first query; of a shared prefix: of its last key

  // Keys that query row r sees.
  PAGED_INLINE Range keys_of(int row) const {
    const int at = position + row / tile.num_heads;
    return {tile.op->window > 0 ? larger(0, at - tile.op->window + 1) : 0, at + 1};
  }
  PAGED_INLINE std::int64_t token(int row) const {
    return tile.op->batch->query_start[tile.sequence] + tile.query_begin + row / tile.num_heads;
  }
  PAGED_INLINE int head(int row) const { return tile.head_begin + row % tile.num_heads; }
  PAGED_INLINE Range all_keys() const { return {keys_of(0).begin, keys_of(num_rows - 1).end}; }
  // Those of the tile's chunks up to `chunk_end`, from `chunk_begin` on.
  PAGED_INLINE Range keys_in(int chunk_begin, int chunk_end) const {
    const Range all = all_keys();
    const int end = tile.key_end > 0 ? tile.key_end : all.end;
    return {larger(larger(all.begin, tile.key_begin), chunk_begin * kKeyChunk), smaller(end, chunk_end * kKeyChunk)};
  }
};

// What a thread will read next: keys of the same walk or of another.
struct Coming {
  const Walk& walk;
  Range keys;
};

// Sixteen keys each: keys[i] + d * stride elements (for bfloat16 pairs: + d / 2 * stride).
template <typename C>
struct KeyVectors {
  const C* at[kKeyTile / 16];
  std::int64_t stride;
};

template <typename C>
PAGED_INLINE std::byte* piece_of(const Walk& walk, int key, int is_value) {
  const KvCacheView& cache = walk.tile.op->cache;
  return piece_at<C>(cache, walk.block_table[key / cache.block_size], is_value, walk.tile.kv_head);
}
template <typename C>
PAGED_INLINE const C* elements_at(const Walk& walk, int key, int is_value) {
  return elements_of<C>(walk.tile.op->cache, piece_of<C>(walk, key, is_value), is_value);
}

// Blocks of fewer than 16 keys: lays the tile's keys of `range` side by side in scratch.
template <typename C>
void gather_keys(const Walk& walk, int tile_begin, Range range) {
  const int block_size = walk.tile.op->cache.block_size;
  C* to = reinterpret_cast<C*>(walk.s.keys);
  for (int key = range.begin; key < range.end; ++key) {
    const C* piece = elements_at<C>(walk, key, 0);
    for (int d = 0; d < walk.head_dim; ++d)
      to[key_offset<C>(key - tile_begin, d, kKeyTile)] = piece[key_offset<C>(key % block_size, d, block_size)];
  }
}

// Addresses of the values of `range`; the others are left as they are.
template <typename C>
void find_values(const Walk& walk, int tile_begin, Range range, const std::byte** values) {
  const int block_size = walk.tile.op->cache.block_size;
  for (int key = range.begin; key < range.end;) {
    const int in_block = key & (block_size - 1);
    const C* value = elements_at<C>(walk, key, 1) + std::int64_t{in_block} * walk.head_dim;
    const int end = smaller(range.end, key - in_block + block_size);
    for (; key < end; ++key, value += walk.head_dim)
      values[key - tile_begin] = reinterpret_cast<const std::byte*>(value);
  }
}

// Scales of the tile's keys (is_value 0), kKeyTile for each group of components, or of its values. Those outside of
// `range` are 0: their weights are none.
template <typename C>
PAGED_INLINE void gather_scales(const Walk& walk, int tile_begin, Range range, int is_value, float* scales) {
  const int block_size = walk.tile.op->cache.block_size, count = num_scales<C>(is_value, walk.head_dim);
  for (int i = 0; i < kKeyTile; i += 16) {
    const int key = tile_begin + i;
    const bool copied = block_size >= 16 && key < range.end && key + 16 > range.begin;
    const auto* from = !copied ? nullptr : reinterpret_cast<const float*>(piece_of<C>(walk, key, is_value));
    for (int group = 0; group < count; ++group) {
      F32 lanes = zero();
      if (copied) lanes = load(from + group * block_size + key % block_size);
      store(scales + group * kKeyTile + i, keep_lanes(lanes, range.begin - key, range.end - key, 0.0f));
    }
  }
  if (block_size >= 16) return;
  for (int key = range.begin; key < range.end; ++key)
    for (int group = 0; group < count; ++group)
      scales[group * kKeyTile + key - tile_begin] =
          load_scale(piece_of<C>(walk, key, is_value), group * block_size + key % block_size);
}

template <typename C>
PAGED_INLINE void find_scales(const Walk& walk, int tile_begin, Range range) {
  if constexpr (kScaled<C>) {
    gather_scales<C>(walk, tile_begin, range, 0, walk.s.key_scales);
    gather_scales<C>(walk, tile_begin, range, 1, walk.s.value_scales);
  }
}

// The lines of the K or V pieces under a range of keys, asked for a few at a time between the sums: block tables jump,
// which no hardware prefetcher follows, and whoever asks for more lines at once than a core has misses in flight waits.
// (In blocks larger than a tile most of the neighbouring lines are the tile's own, and the hardware does.)
template <typename C>
class Ahead {
 public:
  PAGED_INLINE Ahead(const Coming& coming, int is_value)
      : walk_(&coming.walk),
        key_(coming.keys.begin & -coming.walk.tile.op->cache.block_size),
        end_(coming.keys.end),
        is_value_(is_value) {
    if (coming.walk.tile.op->cache.block_size > kKeyTile) end_ = key_;
  }

  // Inline, because GCC takes a function that only prefetches for one without effect and drops its calls.
  PAGED_INLINE void fetch_lines(int count) {
    if (piece_end_ - line_ >= 64 * count) {
      for (int i = 0; i < count; ++i) __builtin_prefetch(line_ + 64 * i);
      line_ += 64 * count;
      return;
    }
    for (int i = 0; i < count; ++i) {
      if (line_ == piece_end_) {
        if (key_ >= end_) return;
        next_piece();
      }
      __builtin_prefetch(line_);
      line_ += 64;
    }
  }

 private:
  PAGED_INLINE void next_piece() {
    const KvCacheView& cache = walk_->tile.op->cache;
    line_ = piece_of<C>(*walk_, key_, is_value_);
    piece_end_ = line_ + (cache.block_size * row_bytes<C>(is_value_, cache.head_dim) + 63) / 64 * 64;
    key_ += cache.block_size;
  }

  const Walk* walk_;
  const std::byte* line_ = nullptr;
  const std::byte* piece_end_ = nullptr;
  int key_;
  int end_;
  int is_value_;
};

// Vectors wholly outside `range` repeat one inside: their scores are masked.
template <typename C>
KeyVectors<C> key_vectors(const Walk& walk, int tile_begin, Range range) {
  constexpr int kGroup = kKeyGroup<C>;
  const int block_size = walk.tile.op->cache.block_size;
  KeyVectors<C> out;
  out.stride = std::int64_t{kGroup} * (block_size < 16 ? kKeyTile : block_size);
  if (block_size < 16) gather_keys<C>(walk, tile_begin, range);
  for (int i = 0; i < kKeyTile / 16; ++i) {
    const int first = tile_begin + 16 * i;
    const int key = first >= range.end || first + 16 <= range.begin ? range.begin / 16 * 16 : first;
    if (block_size < 16)
      out.at[i] = reinterpret_cast<const C*>(walk.s.keys) + kGroup * (key - tile_begin);
    else
      out.at[i] = elements_at<C>(walk, key, 0) + kGroup * (key % block_size);
  }
  return out;
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

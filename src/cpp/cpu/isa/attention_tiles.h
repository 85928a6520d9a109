// SPDX-License-Identifier: Apache-2.0
// The two products of a tile of keys by AMX. Two tiles of rows are a block. The products of a block wait for one
// another and for memory, the exponentials for neither: so four rows' exponentials stand between the scores of sixteen
// keys by the next block, or the sums of sixteen components of the block before.
#pragma once

#include "cpu/isa/attention_bfloat16.h"
#include "cpu/isa/tiles.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

constexpr int kBlockRows = 32;

// Registers: 0 and 1 for what is summed up, 2 and 3 for keys and values, 4 to 7 for queries and exponentials. Rows past
// the last one are computed too, from whatever is there, and nobody looks at them.
PAGED_INLINE TileShapes attention_shapes(int num_rows) {
  TileShapes shapes;
  for (int tile = 0; tile < 8; ++tile) shapes.set(tile, tile == 2 || tile == 3 ? 16 : smaller(num_rows, 16));
  return shapes;
}

// The rows by one tile of keys. What every instruction needs is a value here: the compiler cannot know that tiles are
// not stored over what a pointer leads to. kHeadDim: head_dim, or 0 for any.
template <typename C, int kHeadDim>
struct TiledStep {
  const Walk& walk;
  const std::byte* keys[kQuarters];
  std::int64_t key_bytes;  // from one pair of components to the next
  RowBlocks<kBlockRows> blocks;
  float factor;
  std::int64_t any_head_dim = walk.head_dim;
  std::int64_t num_rows = walk.num_rows;
  const BFloat16* queries = rounded_queries(walk);
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

  PAGED_INLINE void weigh(int block, int four) const {
    const int row = kBlockRows * block + 4 * four, from = 4 * four * kKeyTile;
    if (row < num_rows) weigh_four_rows<C>(walk, row, factor, scores_of(block) + from, weights_of(block) + from);
  }

  PAGED_INLINE void begin(int block) const {
    load_queries(block);
    for (int quarter = 0; quarter < kQuarters; ++quarter) begin_scores(block, quarter), end_scores(block, quarter);
  }

  PAGED_INLINE void run(Range found) const {
    for (int block = found.begin; block < found.end; ++block) {
      blocks.finish_scores(block, scores_of(block));
      const bool has_next = block + 1 < found.end, has_last = block > found.begin;
      if (has_next) load_queries(block + 1);
      for (int quarter = 0; quarter < kQuarters; ++quarter) {
        if (has_next) begin_scores(block + 1, quarter);
        weigh(block, quarter);
        if (has_next) end_scores(block + 1, quarter);
      }
      if (has_last) load_weights(block - 1);
      for (int quarter = 0; quarter < kQuarters; ++quarter) {
        if (has_last) begin_values(block - 1, quarter);
        weigh(block, kQuarters + quarter);
        if (has_last) end_values(block - 1, quarter);
      }
    }
    load_weights(found.end - 1);
    for (int quarter = 0; quarter < kQuarters; ++quarter)
      begin_values(found.end - 1, quarter), end_values(found.end - 1, quarter);
  }
};

// One step of the online softmax.
template <typename C, int kHeadDim>
void visit_keys_tiled(const Walk& walk, Range range, const Coming& next) {
  const int tile_begin = range.begin / kKeyTile * kKeyTile;
  find_scales<C>(walk, tile_begin, range);
  const KeyVectors<BFloat16> keys = paired_keys(walk, key_vectors<C>(walk, tile_begin, range));
  TiledStep<C, kHeadDim> step{walk, {}, keys.stride * 2, {walk, tile_begin}, score_factor(*walk.tile.op)};
  for (int i = 0; i < kQuarters; ++i) step.keys[i] = reinterpret_cast<const std::byte*>(keys.at[i]);
  const Range visible = step.blocks.visible();
  if (visible.begin == visible.end) return;
  step.begin(visible.begin);
  find_values<C>(walk, tile_begin, range, walk.s.values);
  pair_values<C>(walk, {range.begin - tile_begin, range.end - tile_begin}, next);
  step.run(visible);
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

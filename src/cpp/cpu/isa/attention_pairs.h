// SPDX-License-Identifier: Apache-2.0
// The two products of a tile of keys by AVX512-BF16: some rows by vectors of sixteen keys or components, whose sums stay
// in registers while pairs of components or keys pass by. A sum is one chain over them, whatever its neighbours.
#pragma once

#include "cpu/isa/attention_bfloat16.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

constexpr int kPairBlockRows = 16;  // scores, weights, sums, keys and values of so many stay in the nearest cache
constexpr int kPairRows = 8;        // at once

// Rows of a, so many elements apart, by sixteen columns at each of b, whose pairs are so many bytes apart.
struct PairOperands {
  const BFloat16* a;
  std::int64_t a_stride;
  const std::byte* b[kQuarters];
  std::int64_t b_bytes;
  std::int64_t num_pairs;
};

template <int kRows, int kVectors>
PAGED_INLINE void add_pair_products(const PairOperands& x, F32 (&acc)[kRows][kVectors]) {
  for (std::int64_t i = 0; i < x.num_pairs; ++i) {
    I32 words[kVectors];
    for (int v = 0; v < kVectors; ++v) words[v] = load_words(x.b[v] + i * x.b_bytes);
    for (int r = 0; r < kRows; ++r) {
      std::uint32_t pair;
      __builtin_memcpy(&pair, x.a + r * x.a_stride + 2 * i, sizeof(pair));
      for (int v = 0; v < kVectors; ++v) acc[r][v] = dot_pairs(acc[r][v], words[v], set1_word(pair));
    }
  }
}

// Vectors of as many rows that keep the instruction busy.
template <int kRows>
inline constexpr int kVectorsOf = kRows > 4 ? 2 : 4;

// The rows by one tile of keys.
template <typename C>
struct PairStep {
  const Walk& walk;
  KeyVectors<BFloat16> keys;
  RowBlocks<kPairBlockRows> blocks;
  float factor;

  // Rows of q from `row` on -> p.
  template <int kRows>
  void score(int row, float* p) const {
    constexpr int kVectors = kVectorsOf<kRows>;
    for (int quarter = 0; quarter < kQuarters; quarter += kVectors) {
      PairOperands x{rounded_queries(walk) + row * walk.head_dim, walk.head_dim, {}, keys.stride * 2, walk.head_dim / 2};
      for (int v = 0; v < kVectors; ++v) x.b[v] = reinterpret_cast<const std::byte*>(keys.at[quarter + v]);
      F32 acc[kRows][kVectors];
      for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) acc[r][v] = zero();
      add_pair_products(x, acc);
      for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) store(p + r * kKeyTile + 16 * (quarter + v), acc[r][v]);
    }
  }

  // Components [d, d + 16 * kVectors) of the rows' sums += weights @ values.
  template <int kRows, int kVectors>
  PAGED_INLINE void add_components(int row, int d, const BFloat16* weights) const {
    PairOperands x{weights, kKeyTile, {}, std::int64_t{4} * walk.head_dim, kKeyTile / 2};
    for (int v = 0; v < kVectors; ++v) x.b[v] = reinterpret_cast<const std::byte*>(walk.s.pairs + 2 * (d + 16 * v));
    float* out = walk.s.acc + row * walk.head_dim + d;
    F32 acc[kRows][kVectors];
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) acc[r][v] = load(out + r * walk.head_dim + 16 * v);
    add_pair_products(x, acc);
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) store(out + r * walk.head_dim + 16 * v, acc[r][v]);
  }
  template <int kRows>
  void add_values(int row, const BFloat16* weights) const {
    constexpr int kVectors = kVectorsOf<kRows>;
    int d = 0;
    for (; d + 16 * kVectors <= walk.head_dim; d += 16 * kVectors) add_components<kRows, kVectors>(row, d, weights);
    for (; d < walk.head_dim; d += 32) add_components<kRows, 2>(row, d, weights);
  }

  template <int kRows>
  PAGED_INLINE void score_some(int row, int num_rows, float* p) const {
    if (num_rows == kRows)
      score<kRows>(row, p);
    else if constexpr (kRows > 1)
      score_some<kRows - 1>(row, num_rows, p);
  }
  template <int kRows>
  PAGED_INLINE void add_values_of_some(int row, int num_rows, const BFloat16* weights) const {
    if (num_rows == kRows)
      add_values<kRows>(row, weights);
    else if constexpr (kRows > 1)
      add_values_of_some<kRows - 1>(row, num_rows, weights);
  }

  PAGED_INLINE void run(int block) const {
    const RowBlock rows = blocks.at(block);
    const int num_rows = rows.end - rows.begin, groups = (num_rows + kPairRows - 1) / kPairRows;
    const int group = (num_rows + groups - 1) / groups;
    float* p = walk.s.p;
    BFloat16* weights = walk.s.rounded;
    for (int i = 0; i < num_rows; i += group)
      score_some<kPairRows>(rows.begin + i, smaller(group, num_rows - i), p + i * kKeyTile);
    blocks.finish_scores(block, p);
    for (int i = 0; i < num_rows; i += 4)
      weigh_four_rows<C>(walk, rows.begin + i, factor, p + i * kKeyTile, weights + i * kKeyTile);
    for (int i = 0; i < num_rows; i += group)
      add_values_of_some<kPairRows>(rows.begin + i, smaller(group, num_rows - i), weights + i * kKeyTile);
  }
};

// One step of the online softmax. `next` is the range of the following step.
template <typename C>
void visit_keys_in_pairs(const Walk& walk, Range range, Range next) {
  const int tile_begin = range.begin / kKeyTile * kKeyTile;
  find_scales<C>(walk, tile_begin, range);
  const KeyVectors<BFloat16> keys = paired_keys(walk, key_vectors<C>(walk, tile_begin, range));
  const PairStep<C> step{walk, keys, {walk, tile_begin}, score_factor(*walk.tile.op)};
  const Range visible = step.blocks.visible();
  if (visible.begin == visible.end) return;
  find_values<C>(walk, tile_begin, range, walk.s.values);
  pair_values<C>(walk, {range.begin - tile_begin, range.end - tile_begin}, next);
  for (int block = visible.begin; block < visible.end; ++block) step.run(block);
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

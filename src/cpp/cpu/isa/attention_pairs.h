// SPDX-License-Identifier: Apache-2.0
// The two products of a tile of keys by AVX512-BF16: some rows by vectors of sixteen keys or components, whose sums
// stay in registers while pairs of components or keys pass by. A sum is one chain over them, whatever its neighbours.
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

// Calls beside() at each step.
template <int kRows, int kVectors, typename Beside>
PAGED_INLINE void add_pair_products(const PairOperands& x, F32 (&acc)[kRows][kVectors], Beside beside) {
  RowCursor<kRows> rows(x.a, x.a_stride * 2);
  for (std::int64_t i = 0; i < x.num_pairs; ++i) {
    I32 words[kVectors];
    beside();
    for (int v = 0; v < kVectors; ++v) words[v] = load_words(x.b[v] + i * x.b_bytes), keep_in_register(words[v]);
    add_pair(rows, words, acc);
    rows.advance(4);
  }
}

template <int kRows, int kVectors>
PAGED_INLINE void load_sums(const float* from, std::int64_t stride, F32 (&acc)[kRows][kVectors]) {
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) acc[r][v] = load(from + r * stride + 16 * v);
}
template <int kRows, int kVectors>
PAGED_INLINE void store_sums(float* to, std::int64_t stride, const F32 (&acc)[kRows][kVectors]) {
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) store(to + r * stride + 16 * v, acc[r][v]);
}

// Vectors of as many rows that keep the instruction busy.
template <int kRows>
inline constexpr int kVectorsOf = kRows > 4 ? 2 : 4;

// The rows by one tile of keys.
struct PairStep {
  const Walk& walk;
  KeyVectors<BFloat16> keys;
  RowBlocks<kPairBlockRows> blocks;
  float factor;

  // Rows of q from `row` on -> p. Calls beside(lines) at each step, for as many lines as the step reads.
  template <int kRows, typename Beside>
  PAGED_INLINE void score(int row, float* p, Beside beside) const {
    constexpr int kVectors = kVectorsOf<kRows>;
    for (int quarter = 0; quarter < kQuarters; quarter += kVectors) {
      PairOperands x{
          rounded_queries(walk) + row * walk.head_dim, walk.head_dim, {}, keys.stride * 2, walk.head_dim / 2};
      for (int v = 0; v < kVectors; ++v) x.b[v] = reinterpret_cast<const std::byte*>(keys.at[quarter + v]);
      F32 acc[kRows][kVectors];
      for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) acc[r][v] = zero();
      add_pair_products(x, acc, [&] { beside(kVectors); });
      store_sums(p + 16 * quarter, kKeyTile, acc);
    }
  }

  // Components [d, d + 16 * kVectors) of the rows' sums += weights @ values.
  template <int kRows, int kVectors>
  PAGED_INLINE void add_components(int row, int d, const BFloat16* weights) const {
    PairOperands x{weights, kKeyTile, {}, std::int64_t{4} * walk.head_dim, kKeyTile / 2};
    for (int v = 0; v < kVectors; ++v) x.b[v] = reinterpret_cast<const std::byte*>(walk.s.pairs + 2 * (d + 16 * v));
    float* out = walk.s.acc + row * walk.head_dim + d;
    F32 acc[kRows][kVectors];
    load_sums(out, walk.head_dim, acc);
    add_pair_products(x, acc, [] {});
    store_sums(out, walk.head_dim, acc);
  }
  template <int kRows>
  void add_values(int row, const BFloat16* weights) const {
    constexpr int kVectors = kVectorsOf<kRows>;
    int d = 0;
    for (; d + 16 * kVectors <= walk.head_dim; d += 16 * kVectors) add_components<kRows, kVectors>(row, d, weights);
    for (; d < walk.head_dim; d += 32) add_components<kRows, 2>(row, d, weights);
  }

  // The same for all rows of a walk: values are put in pairs where they are multiplied, and those that come next are
  // asked for.
  template <int kRows, int kVectors>
  PAGED_INLINE void add_components_directly(int d, Range in_tile, Ahead<BFloat16>& next) const {
    float* out = walk.s.acc + d;
    F32 acc[kRows][kVectors];
    load_sums(out, walk.head_dim, acc);
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; v += 2) split_fours(acc[r][v], acc[r][v + 1]);
    RowCursor<kRows> weights(walk.s.rounded, kKeyTile * 2);
    for (int key = 0; key < kKeyTile; key += 2) {
      const BFloat16* even = value_at<BFloat16>(walk, in_tile, key) + d;
      const BFloat16* odd = value_at<BFloat16>(walk, in_tile, key + 1) + d;
      next.fetch_lines(kVectors);
      I32 words[kVectors];
      for (int v = 0; v < kVectors; v += 2) interleave_fours(even + 16 * v, odd + 16 * v, words[v], words[v + 1]);
      add_pair(weights, words, acc);
      weights.advance(4);
    }
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; v += 2) join_fours(acc[r][v], acc[r][v + 1]);
    store_sums(out, walk.head_dim, acc);
  }
  template <int kRows>
  void add_values_directly(Range in_tile, const Coming& next) const {
    constexpr int kVectors = kVectorsOf<kRows>;
    Ahead<BFloat16> ahead(next, 1);
    int d = 0;
    for (; d + 16 * kVectors <= walk.head_dim; d += 16 * kVectors)
      add_components_directly<kRows, kVectors>(d, in_tile, ahead);
    for (; d < walk.head_dim; d += 32) add_components_directly<kRows, 2>(d, in_tile, ahead);
  }

  template <int kRows>
  PAGED_INLINE void score_some(int row, int num_rows, float* p) const {
    if (num_rows == kRows)
      score<kRows>(row, p, [](int) {});
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

  // All rows of a walk, up to kRows. Each half of the work asks for as much of what comes next as it reads: or memory
  // would wait for one half, and the other for memory.
  template <int kRows>
  PAGED_INLINE void run_few(Range in_tile, const Coming& next) const {
    if (walk.num_rows == kRows) {
      Ahead<BFloat16> ahead(next, 0);
      score<kRows>(0, walk.s.p, [&](int lines) { ahead.fetch_lines(lines); });
      end_scores(0, kRows);
      add_values_directly<kRows>(in_tile, next);
    } else if constexpr (kRows > 1) {
      run_few<kRows - 1>(in_tile, next);
    }
  }

  // The scores of a block of rows -> exponentials.
  PAGED_INLINE void end_scores(int block, int num_rows) const {
    float* p = walk.s.p;
    blocks.finish_scores(block, p);
    for (int i = 0; i < num_rows; i += 4)
      weigh_four_rows<BFloat16>(walk, blocks.at(block).begin + i, factor, p + i * kKeyTile,
                                walk.s.rounded + i * kKeyTile);
  }
  PAGED_INLINE void run(int block) const {
    const RowBlock rows = blocks.at(block);
    const int num_rows = rows.end - rows.begin, group = even_tile(num_rows, kPairRows);
    for (int i = 0; i < num_rows; i += group)
      score_some<kPairRows>(rows.begin + i, smaller(group, num_rows - i), walk.s.p + i * kKeyTile);
    end_scores(block, num_rows);
    for (int i = 0; i < num_rows; i += group)
      add_values_of_some<kPairRows>(rows.begin + i, smaller(group, num_rows - i), walk.s.rounded + i * kKeyTile);
  }
};

// One step of the online softmax.
inline void visit_keys_in_pairs(const Walk& walk, Range range, const Coming& next) {
  const int tile_begin = range.begin / kKeyTile * kKeyTile;
  const Range in_tile{range.begin - tile_begin, range.end - tile_begin};
  const PairStep step{
      walk, key_vectors<BFloat16>(walk, tile_begin, range), {walk, tile_begin}, score_factor(*walk.tile.op)};
  const Range visible = step.blocks.visible();
  if (visible.begin == visible.end) return;
  find_values<BFloat16>(walk, tile_begin, range, walk.s.values);
  if (walk.num_rows <= kPairRows) return step.run_few<kPairRows>(in_tile, next);
  pair_values<BFloat16>(walk, in_tile, next);
  for (int block = visible.begin; block < visible.end; ++block) step.run(block);
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

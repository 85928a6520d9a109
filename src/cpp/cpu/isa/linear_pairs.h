// SPDX-License-Identifier: Apache-2.0
// x @ w.T of bfloat16 by dpbf16, for any number of rows: a panel is already what the instruction reads, and x is read
// where it lies. Every output is one chain over the pairs of k in ascending order: the same for every number of rows.
#pragma once

#include "cpu/isa/bfloat16.h"
#include "cpu/isa/finish_rows.h"
#include "cpu/isa/rows.h"
#include "cpu/kernel_table.h"
#include "cpu/packed_matrix.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

constexpr int kFewPairRows = 4;
// k, at most, of a pass. What meets stays in the nearest cache beside what is asked for there; weights that come from
// the second one leave room for longer passes, which load and store sums less often.
constexpr int kNearPass = 320, kFarPass = 640;
constexpr int kPairsAhead = 4096;               // bytes of a panel that few rows ask for before they are needed
constexpr int kPairBytes = 2 * kPanelRows * 2;  // of two k of a panel

struct PairScratch {
  static constexpr int kStride = kPairPanels * kPanelRows;
  alignas(64) float acc[kMaxLinearTile.rows * kStride];
};

// Rows by panels, k from k_begin to k_end; both even.
struct PairPass {
  const BFloat16* x;  // the first row, from its k = 0
  std::int64_t x_stride;
  const std::byte* panels;  // the first of the tile, from its k = 0
  std::int64_t panel_bytes;
  std::int64_t k_begin;
  std::int64_t k_end;
  float* acc;  // [rows, PairScratch::kStride]
  bool asks_nearest;
};

// `ahead`: lines of kAsks neighbouring panels, one of which is asked for beside each step.
template <int kAsks, int kRows, int kPanels>
void multiply_pairs(const PairPass& pass, int row, int panel, [[maybe_unused]] const std::byte* ahead) {
  constexpr int kStride = PairScratch::kStride;
  const std::byte* weights = pass.panels + panel * pass.panel_bytes;
  const std::byte *at = weights + pass.k_begin / 2 * kPairBytes, *end = weights + pass.k_end / 2 * kPairBytes;
  RowCursor<kRows> x(pass.x + row * pass.x_stride + pass.k_begin, pass.x_stride * 2);
  float* out = pass.acc + row * kStride + panel * kPanelRows;
  F32 acc[kRows][kPanels];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) acc[r][p] = pass.k_begin == 0 ? zero() : load(out + r * kStride + p * kPanelRows);
  for (; at < end; at += kPairBytes) {
    I32 words[kPanels];
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) words[p] = load_words(at + p * pass.panel_bytes);
    if constexpr (kRows <= kFewPairRows && kPanels <= 2)  // machines find more streams by themselves
      for (int p = 0; p < kPanels; ++p) __builtin_prefetch(at + p * pass.panel_bytes + kPairsAhead);
    for (int p = 0; p < kAsks; ++p) ask_for_weights(ahead + p * pass.panel_bytes, pass.asks_nearest);
    if constexpr (kAsks > 0) ahead += kPairBytes;
    add_pair(x, words, acc);
    x.advance(4);
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) store(out + r * kStride + p * kPanelRows, acc[r][p]);
}

template <int kRows, int kPanels>
PAGED_INLINE void multiply_pair_panels(const PairPass& pass, int panel, int num_panels) {
  if (num_panels == kPanels)
    multiply_pairs<0, kRows, kPanels>(pass, 0, panel, nullptr);
  else if constexpr (kPanels > 1)
    multiply_pair_panels<kRows, kPanels - 1>(pass, panel, num_panels);
}

// Up to kFewPairRows rows, by as many panels at once as can be.
template <int kRows>
void multiply_few_pairs(const PairPass& pass, int num_rows, int num_panels) {
  if constexpr (kRows > 1)
    if (num_rows < kRows) return multiply_few_pairs<kRows - 1>(pass, num_rows, num_panels);
  constexpr int kPanels = kRows < 3 ? 8 : 24 / kRows;  // whose sums fit the registers
  const int tile = even_tile(num_panels, kPanels);
  for (int panel = 0; panel < num_panels; panel += tile)
    multiply_pair_panels<kRows, kPanels>(pass, panel, smaller(tile, num_panels - panel));
}

template <int kAsks, int kPanels, int kRows>
PAGED_INLINE void multiply_pair_rows(const PairPass& pass, int row, int num_rows, int panel, const std::byte* ahead) {
  if (num_rows == kRows)
    multiply_pairs<kAsks, kRows, kPanels>(pass, row, panel, ahead);
  else if constexpr (kRows > 1)
    multiply_pair_rows<kAsks, kPanels, kRows - 1>(pass, row, num_rows, panel, ahead);
}

// One register tile of rows by one or two panels, which asks for `asks` others.
template <int kRows>
PAGED_INLINE void multiply_pair_tile(const PairPass& pass, int row, int num_rows, int panel, bool two, int asks,
                                     const std::byte* ahead) {
  if (!two) return multiply_pair_rows<0, 1, kRows>(pass, row, num_rows, panel, nullptr);
  if (asks == 0) return multiply_pair_rows<0, kTilePanels, kRows>(pass, row, num_rows, panel, nullptr);
  if (asks == 1) return multiply_pair_rows<1, kTilePanels, kRows>(pass, row, num_rows, panel, ahead);
  multiply_pair_rows<2, kTilePanels, kRows>(pass, row, num_rows, panel, ahead);
}

// All rows meet a pair of panels, which stays in the nearest cache with them. If the weights are new to the thread, two
// of the tiles of rows ask for the next pair meanwhile: at last for `next`.
template <int kRows>
void multiply_many_pairs(const PairPass& pass, int num_rows, int num_panels, bool is_new, const std::byte* next) {
  const int tile = even_tile(num_rows, kRows), num_tiles = (num_rows + tile - 1) / tile;
  const std::byte* begin = pass.panels + pass.k_begin / 2 * kPairBytes;
  for (int panel = 0; panel < num_panels; panel += kTilePanels) {
    const bool is_last = panel + kTilePanels >= num_panels;
    const std::byte* ahead = is_last ? next : begin + (panel + kTilePanels) * pass.panel_bytes;
    for (int i = 0; i < num_tiles; ++i) {
      const bool asks = is_new && (i == 0 || i == num_tiles / 2);
      const int lines = !asks ? 0 : num_tiles == 1 ? 2 : 1;
      multiply_pair_tile<kRows>(pass, i * tile, smaller(tile, num_rows - i * tile), panel, panel + 1 < num_panels,
                                lines, ahead + (i == 0 ? 0 : pass.panel_bytes));
    }
  }
}

// What these products, and those of linear_tiles.h, are for.
PAGED_INLINE bool multiplies_bfloat16(const LinearTile& tile) {
  return tile.weights->format == PackedFormat::kBFloat16 && tile.x.dtype == DType::kBFloat16 &&
         tile.x.cols % kBFloat16Cols == 0;
}

// The products of the tile -> rows of out.
template <typename T>
void multiply_by_pairs(const LinearTile& tile) {
  const PackedMatrix& matrix = *tile.weights;
  PairScratch& scratch = *reinterpret_cast<PairScratch*>(tile.scratch);
  PairPass pass{.x = row_of<const BFloat16>(tile.x, tile.row_begin),
                .x_stride = tile.x.row_stride,
                .panels = matrix.data + tile.panel_begin * matrix.panel_bytes,
                .panel_bytes = matrix.panel_bytes,
                .k_begin = 0,
                .k_end = matrix.cols,
                .acc = scratch.acc,
                .asks_nearest = tile.asks_nearest};
  if (tile.num_rows <= kFewPairRows) {
    multiply_few_pairs<kFewPairRows>(pass, tile.num_rows, tile.num_panels);
  } else {
    const int most = tile.asks_nearest ? kNearPass : kFarPass;
    const std::int64_t passes = (matrix.cols + most - 1) / most;
    const std::int64_t step = (matrix.cols / 2 + passes - 1) / passes * 2;
    for (; pass.k_begin < matrix.cols; pass.k_begin += step) {
      pass.k_end = pass.k_begin + step < matrix.cols ? pass.k_begin + step : matrix.cols;
      const std::byte* next = pass.k_end < matrix.cols ? pass.panels + pass.k_end / 2 * kPairBytes : tile.next;
      multiply_many_pairs<kTileRows>(pass, tile.num_rows, tile.num_panels, tile.is_new, next);
    }
  }
  finish_rows<T>(tile, scratch.acc, PairScratch::kStride);
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

// SPDX-License-Identifier: Apache-2.0
// x @ w.T of bfloat16 by AMX tiles, for any number of rows: a tile of panels is already what an instruction reads, and
// x is read where it lies. The sum over k is that of the instruction, 32 k at a time in ascending order: the same for
// every number of rows.
#pragma once

#include "cpu/isa/finish_rows.h"
#include "cpu/isa/rows.h"
#include "cpu/isa/tiles.h"
#include "cpu/kernel_table.h"
#include "cpu/packed_matrix.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

constexpr int kPairRows = 32;  // two tiles of rows of x
// Of one pass over many rows: that much of 32 rows of x stays in the nearest cache beside the weights that pass it.
constexpr int kPassSteps = 10;
constexpr int kTileOfX = 16 * kTileBytes;
static_assert(kBFloat16Cols == kTileK);

// Sums of 32 rows, one panel more than a tile has, for two panels are multiplied at once. Two buffers for what is
// finished: the one is still read while the other is written.
struct TiledScratch {
  static constexpr int kStride = (kMaxBFloat16Tile.panels + 1) * kPanelRows;
  alignas(64) float acc[kPairRows * kStride];
  alignas(64) float done[2][kPairRows * 2 * kPanelRows];
};

// Of one item. `x` is as the caller has it: rows so many bytes apart.
struct TiledLinear {
  const LinearTile& tile;
  TiledScratch& scratch;
  const std::byte* x;
  std::int64_t x_bytes;
  const std::byte* panels;
  std::int64_t panel_bytes;
  std::int64_t steps;

  PAGED_INLINE const std::byte* panel_at(int panel, std::int64_t step) const {
    return panels + panel * panel_bytes + step * kTileOfX;
  }
};

// Weights to come, a few lines a step.
struct NextWeights {
  const std::byte* at;
  std::int64_t lines;

  NextWeights(const LinearTile& tile, std::int64_t steps) : at(tile.next) {
    const std::int64_t all_steps = tile.num_rows / kPairRows * std::int64_t{(tile.num_panels + 1) / 2} * steps;
    lines = all_steps == 0 ? 0 : (tile.next_bytes / kTileBytes + all_steps - 1) / all_steps;
  }
  const std::byte* take(std::int64_t count) {
    const std::byte* from = at;
    at += count * kTileBytes;
    return from;
  }
};

// Rows [row, row + num_rows), at most 16, by all panels: the weights come from memory, once.
template <typename T>
PAGED_INLINE void multiply_few_tiled(const TiledLinear& item, int row, int num_rows) {
  begin_tiles(shapes_of(num_rows, 0));
  TileProduct product{.a = item.x + row * item.x_bytes,
                      .a_bytes = item.x_bytes,
                      .a_step = kTileBytes,
                      .b = {},
                      .b_bytes = kTileBytes,
                      .c = {},
                      .c_bytes = 4 * kPanelRows * 4,
                      .steps = item.steps,
                      .onto = false};
  float* acc = item.scratch.acc;
  const auto take = [&](int panel, int count) {
    for (int i = 0; i < count; ++i) {
      product.b[i] = item.panel_at(panel + i, 0);
      product.c[i] = acc + i * kPanelRows;
    }
  };
  int panel = 0;
  for (; panel + 4 <= item.tile.num_panels; panel += 4) {
    take(panel, 4);
    multiply_one_by_four(product);
    finish_panels<T>(item.tile, row, num_rows, panel, 4, acc, 4 * kPanelRows);
  }
  for (; panel < item.tile.num_panels; ++panel) {
    take(panel, 1);
    multiply_one_by_one(product);
    finish_panels<T>(item.tile, row, num_rows, panel, 1, acc, 4 * kPanelRows);
  }
}

// Rows [row, row + num_rows), 17 to 32, by all panels. The last one of an odd number is multiplied twice.
template <typename T>
PAGED_INLINE void multiply_pair_tiled(const TiledLinear& item, int row, int num_rows, NextWeights& next) {
  begin_tiles(shapes_of(16, num_rows - 16));
  const std::int64_t passes = (item.steps + kPassSteps - 1) / kPassSteps;
  const std::int64_t pass_steps = (item.steps + passes - 1) / passes;
  for (std::int64_t begin = 0; begin < item.steps; begin += pass_steps) {
    const std::int64_t end = begin + pass_steps < item.steps ? begin + pass_steps : item.steps;
    const std::byte* x = item.x + row * item.x_bytes + begin * kTileBytes;
    for (int panel = 0; panel < item.tile.num_panels; panel += 2) {
      const bool two = panel + 1 < item.tile.num_panels;
      float* acc = item.scratch.acc + panel * kPanelRows;
      float* done = item.scratch.done[panel / 2 % 2];
      multiply_two_by_two({.a = x,
                           .a_bytes = item.x_bytes,
                           .a_step = kTileBytes,
                           .b = {item.panel_at(panel, begin), item.panel_at(panel + (two ? 1 : 0), begin)},
                           .b_bytes = kTileBytes,
                           .c = acc,
                           .c_bytes = TiledScratch::kStride * 4,
                           .to = end == item.steps ? done : acc,
                           .to_bytes = end == item.steps ? 2 * kPanelRows * 4 : TiledScratch::kStride * 4,
                           .steps = end - begin,
                           .onto = begin != 0,
                           .next = next.take((end - begin) * next.lines),
                           .next_lines = next.lines});
      if (end == item.steps) finish_panels<T>(item.tile, row, num_rows, panel, two ? 2 : 1, done, 2 * kPanelRows);
    }
  }
}

// The products of the tile -> rows of out.
template <typename T>
void multiply_tiles(const LinearTile& tile) {
  const PackedMatrix& matrix = *tile.weights;
  const TiledLinear item{.tile = tile,
                         .scratch = *reinterpret_cast<TiledScratch*>(tile.scratch),
                         .x = static_cast<const std::byte*>(tile.x.data) + 2 * tile.row_begin * tile.x.row_stride,
                         .x_bytes = 2 * tile.x.row_stride,
                         .panels = matrix.data + tile.panel_begin * matrix.panel_bytes,
                         .panel_bytes = matrix.panel_bytes,
                         .steps = matrix.cols / kTileK};
  NextWeights next(tile, item.steps);
  int row = 0;
  for (; tile.num_rows - row > 16; row += kPairRows)
    multiply_pair_tiled<T>(item, row, tile.num_rows - row < kPairRows ? tile.num_rows - row : kPairRows, next);
  if (row < tile.num_rows) multiply_few_tiled<T>(item, row, tile.num_rows - row);
  end_tiles();
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

// SPDX-License-Identifier: Apache-2.0
// x @ w.T of bfloat16 by AMX tiles, for any number of rows: a tile of panels is already what an instruction reads. The
// sum over k is that of the instruction, 32 k at a time in ascending order: the same for every number of rows.
#pragma once

#include "cpu/isa/rows.h"
#include "cpu/isa/tiles.h"
#include "cpu/packed_matrix.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

constexpr int kPairRows = 32;    // two tiles of rows of x
constexpr int kTiledSteps = 16;  // of one pass over many rows: that much of 32 rows of x stays in the nearest cache
constexpr int kTileOfX = 16 * kTileBytes;

// Of one item. `x` is as the caller has it: rows so many bytes apart.
struct TiledLinear {
  const std::byte* x;
  std::int64_t x_bytes;
  const std::byte* panels;
  std::int64_t panel_bytes;
  int num_panels;
  std::int64_t steps;
  float* acc;  // [rows][acc_bytes]
  std::int64_t acc_bytes;

  PAGED_INLINE float* acc_at(int row, int panel) const {
    return reinterpret_cast<float*>(reinterpret_cast<std::byte*>(acc) + row * acc_bytes) + panel * kPanelRows;
  }
  PAGED_INLINE const std::byte* panel_at(int panel, std::int64_t step) const {
    return panels + panel * panel_bytes + step * kTileOfX;
  }
};

// Rows [row, row + num_rows), at most 16, by all panels: the weights come from memory, once.
PAGED_INLINE void multiply_few_tiled(const TiledLinear& item, int row, int num_rows) {
  begin_tiles(shapes_of(num_rows, 0));
  TileProduct product{.a = item.x + row * item.x_bytes,
                      .a_bytes = item.x_bytes,
                      .a_step = kTileBytes,
                      .b = {},
                      .b_bytes = kTileBytes,
                      .c = {},
                      .c_bytes = item.acc_bytes,
                      .steps = item.steps,
                      .onto = false};
  const auto take = [&](int panel, int count) {
    for (int i = 0; i < count; ++i) {
      product.b[i] = item.panel_at(panel + i, 0);
      product.c[i] = item.acc_at(row, panel + i);
    }
  };
  int panel = 0;
  for (; panel + 4 <= item.num_panels; panel += 4) {
    take(panel, 4);
    multiply_one_by_four(product);
  }
  for (; panel < item.num_panels; ++panel) {
    take(panel, 1);
    multiply_one_by_one(product);
  }
}

// Copies steps [begin, begin + count) of the rows side by side: rows as far apart as a power of two evict one another.
PAGED_INLINE void gather_tiles(const TiledLinear& item, int row, int num_rows, std::int64_t begin, std::int64_t count,
                               std::byte* to) {
  for (int r = 0; r < num_rows; ++r) {
    const std::byte* from = item.x + (row + r) * item.x_bytes + begin * kTileBytes;
    for (std::int64_t i = 0; i < count; ++i)
      __builtin_memcpy(to + (i * kPairRows + r) * kTileBytes, from + i * kTileBytes, kTileBytes);
  }
}

// Rows [row, row + num_rows), 17 to 32, by all panels.
PAGED_INLINE void multiply_pair_tiled(const TiledLinear& item, int row, int num_rows, std::byte* scratch) {
  begin_tiles(shapes_of(16, num_rows - 16));
  for (std::int64_t begin = 0; begin < item.steps; begin += kTiledSteps) {
    const std::int64_t count = item.steps - begin < kTiledSteps ? item.steps - begin : kTiledSteps;
    gather_tiles(item, row, num_rows, begin, count, scratch);
    for (int panel = 0; panel + 2 <= item.num_panels; panel += 2)
      multiply_two_by_two({.a = scratch,
                           .a_bytes = kTileBytes,
                           .a_step = kPairRows * kTileBytes,
                           .b = {item.panel_at(panel, begin), item.panel_at(panel + 1, begin), nullptr, nullptr},
                           .b_bytes = kTileBytes,
                           .c = {item.acc_at(row, panel), item.acc_at(row, panel + 1), item.acc_at(row + 16, panel),
                                 item.acc_at(row + 16, panel + 1)},
                           .c_bytes = item.acc_bytes,
                           .steps = count,
                           .onto = begin != 0});
  }
}

PAGED_INLINE bool tiles_take(const LinearTile& tile) {
  return kHasTiles && tile.weights->format == PackedFormat::kBFloat16 && tile.x.dtype == DType::kBFloat16 &&
         tile.x.cols % kTileK == 0;
}

// acc[rows of the tile][acc_stride] = the products of the tile. scratch: kTiledSteps * kPairRows * kTileBytes.
PAGED_INLINE void multiply_tiles(const LinearTile& tile, float* acc, int acc_stride, std::byte* scratch) {
  const PackedMatrix& matrix = *tile.weights;
  TiledLinear item{.x = static_cast<const std::byte*>(tile.x.data) + 2 * tile.row_begin * tile.x.row_stride,
                   .x_bytes = 2 * tile.x.row_stride,
                   .panels = matrix.data + tile.panel_begin * matrix.panel_bytes,
                   .panel_bytes = matrix.panel_bytes,
                   .num_panels = tile.num_panels,
                   .steps = matrix.cols / kTileK,
                   .acc = acc,
                   .acc_bytes = std::int64_t{acc_stride} * 4};
  const int pairs = tile.num_panels / 2 * 2;
  int row = 0;
  for (; tile.num_rows - row > 16; row += kPairRows) {
    const int rows = tile.num_rows - row < kPairRows ? tile.num_rows - row : kPairRows;
    multiply_pair_tiled(item, row, rows, scratch);
  }
  if (row < tile.num_rows) multiply_few_tiled(item, row, tile.num_rows - row);
  if (pairs < tile.num_panels) {  // the last one of an odd number
    item.panels += pairs * matrix.panel_bytes, item.acc += pairs * kPanelRows, item.num_panels = 1;
    const int paired = row < tile.num_rows ? row : tile.num_rows;
    for (int first = 0; first < paired; first += 16)
      multiply_few_tiled(item, first, paired - first < 16 ? paired - first : 16);
  }
  end_tiles();
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

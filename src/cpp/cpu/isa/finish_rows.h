// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/isa/bfloat16.h"
#include "cpu/isa/rows.h"
#include "cpu/kernel_table.h"
#include "cpu/packed_matrix.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

// Sums of `count` panels side by side, with the bias, -> rows [row, row + num_rows) of the tile.
template <typename T>
PAGED_INLINE void finish_panels(const LinearTile& tile, int row, int num_rows, int panel, int count, const float* acc,
                                std::int64_t stride) {
  const std::int64_t first = (tile.panel_begin + panel) * kPanelRows;
  const std::int64_t left = tile.weights->rows - first;
  for (int r = 0; r < num_rows; ++r, acc += stride) {
    T* out = row_of<T>(tile.out, tile.row_begin + row + r) + tile.column_begin + first;
    for_lanes(left < count * kPanelRows ? left : count * kPanelRows, [&](std::int64_t i, int n) {
      F32 sum = load(acc + i);
      if (tile.bias != nullptr) sum = sum + load_lanes(tile.bias + first + i, n);
      store_result(out + i, sum, n);
    });
  }
}
// The sums of the whole tile.
template <typename T>
PAGED_INLINE void finish_rows(const LinearTile& tile, const float* acc, std::int64_t stride) {
  finish_panels<T>(tile, 0, tile.num_rows, 0, tile.num_panels, acc, stride);
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

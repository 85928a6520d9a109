// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/isa/rows.h"
#include "cpu/kernel_table.h"
#include "cpu/packed_matrix.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

// The sums of a tile, acc[rows][acc_stride], and the bias -> out.
template <typename T>
PAGED_INLINE void finish_rows(const LinearTile& tile, const float* acc, int acc_stride) {
  for (int r = 0; r < tile.num_rows; ++r) {
    for (int p = 0; p < tile.num_panels; ++p) {
      const std::int64_t first = (tile.panel_begin + p) * kPanelRows;
      const std::int64_t left = tile.weights->rows - first;
      const int n = static_cast<int>(left < kPanelRows ? left : kPanelRows);
      F32 sum = load(acc + r * acc_stride + p * kPanelRows);
      if (tile.bias != nullptr) sum = sum + load_lanes(tile.bias + first, n);
      store_lanes(row_of<T>(tile.out, tile.row_begin + r) + tile.column_begin + first, sum, n);
    }
  }
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

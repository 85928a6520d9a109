// SPDX-License-Identifier: Apache-2.0
// x @ w.T of bfloat16 by AMX tiles, for any number of rows: a tile of panels is already what an instruction reads. The
// sum over k is that of the instruction, 32 k at a time in ascending order: the same for every number of rows.
#pragma once

#include "cpu/isa/rows.h"
#include "cpu/isa/tiles.h"
#include "cpu/packed_matrix.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

constexpr int kTileRowsOfX = 16;
constexpr int kPairRows = 2 * kTileRowsOfX;  // two tiles of x by two panels
constexpr int kTiledK = 512;                 // k of one pass: two panels of it stay in the nearest cache

// What a pass multiplies, and where it adds the product: acc is [rows][acc_stride].
struct TilePass {
  const std::byte* x;  // of k = 0
  std::int64_t x_bytes;
  const std::byte* panels;  // of k = 0
  std::int64_t panel_bytes;
  float* acc;
  std::int64_t acc_bytes;

  PAGED_INLINE const std::byte* x_at(int row, std::int64_t k) const { return x + row * x_bytes + 2 * k; }
  PAGED_INLINE const std::byte* panel_at(int panel, std::int64_t k) const {
    return panels + panel * panel_bytes + k * (2 * kPanelRows);
  }
  PAGED_INLINE float* acc_at(int row, int panel) const {
    return reinterpret_cast<float*>(reinterpret_cast<std::byte*>(acc) + row * acc_bytes) + panel * kPanelRows;
  }
};

// Registers 0 to 3 hold sums, 4 and 5 x, 6 and 7 weights.
template <int kC>
PAGED_INLINE void begin_sum(const TilePass& pass, bool first, int row, int panel) {
  if (first)
    clear_tile<kC>();
  else
    load_tile<kC>(pass.acc_at(row, panel), pass.acc_bytes);
}

// Two tiles of x by two panels.
PAGED_INLINE void multiply_two_by_two(const TilePass& pass, std::int64_t begin, std::int64_t end, int row, int panel) {
  begin_sum<0>(pass, begin == 0, row, panel);
  begin_sum<1>(pass, begin == 0, row, panel + 1);
  begin_sum<2>(pass, begin == 0, row + kTileRowsOfX, panel);
  begin_sum<3>(pass, begin == 0, row + kTileRowsOfX, panel + 1);
  for (std::int64_t k = begin; k < end; k += kTileK) {
    load_tile<6>(pass.panel_at(panel, k), kTileBytes);
    load_tile<4>(pass.x_at(row, k), pass.x_bytes);
    multiply_pairs_onto<0, 4, 6>();
    load_tile<7>(pass.panel_at(panel + 1, k), kTileBytes);
    multiply_pairs_onto<1, 4, 7>();
    load_tile<5>(pass.x_at(row + kTileRowsOfX, k), pass.x_bytes);
    multiply_pairs_onto<2, 5, 6>();
    multiply_pairs_onto<3, 5, 7>();
  }
  store_tile<0>(pass.acc_at(row, panel), pass.acc_bytes);
  store_tile<1>(pass.acc_at(row, panel + 1), pass.acc_bytes);
  store_tile<2>(pass.acc_at(row + kTileRowsOfX, panel), pass.acc_bytes);
  store_tile<3>(pass.acc_at(row + kTileRowsOfX, panel + 1), pass.acc_bytes);
}

// One tile of x, 16 rows or fewer, by four panels or by one.
PAGED_INLINE void multiply_one_by_four(const TilePass& pass, std::int64_t begin, std::int64_t end, int row, int panel) {
  begin_sum<0>(pass, begin == 0, row, panel);
  begin_sum<1>(pass, begin == 0, row, panel + 1);
  begin_sum<2>(pass, begin == 0, row, panel + 2);
  begin_sum<3>(pass, begin == 0, row, panel + 3);
  for (std::int64_t k = begin; k < end; k += kTileK) {
    load_tile<4>(pass.x_at(row, k), pass.x_bytes);
    load_tile<5>(pass.panel_at(panel, k), kTileBytes);
    multiply_pairs_onto<0, 4, 5>();
    load_tile<6>(pass.panel_at(panel + 1, k), kTileBytes);
    multiply_pairs_onto<1, 4, 6>();
    load_tile<7>(pass.panel_at(panel + 2, k), kTileBytes);
    multiply_pairs_onto<2, 4, 7>();
    load_tile<5>(pass.panel_at(panel + 3, k), kTileBytes);
    multiply_pairs_onto<3, 4, 5>();
  }
  store_tile<0>(pass.acc_at(row, panel), pass.acc_bytes);
  store_tile<1>(pass.acc_at(row, panel + 1), pass.acc_bytes);
  store_tile<2>(pass.acc_at(row, panel + 2), pass.acc_bytes);
  store_tile<3>(pass.acc_at(row, panel + 3), pass.acc_bytes);
}
PAGED_INLINE void multiply_one_by_one(const TilePass& pass, std::int64_t begin, std::int64_t end, int row, int panel) {
  begin_sum<0>(pass, begin == 0, row, panel);
  for (std::int64_t k = begin; k < end; k += kTileK) {
    load_tile<4>(pass.x_at(row, k), pass.x_bytes);
    load_tile<6>(pass.panel_at(panel, k), kTileBytes);
    multiply_pairs_onto<0, 4, 6>();
  }
  store_tile<0>(pass.acc_at(row, panel), pass.acc_bytes);
}

// Registers for tiles of x of `first` and `second` rows (0: only one tile). A panel's are 16 pairs of k.
PAGED_INLINE TileShapes shapes_of(int first, int second) {
  TileShapes shapes;
  for (int tile = 0; tile < 4; ++tile) shapes.set(tile, second == 0 || tile < 2 ? first : second);
  shapes.set(4, first);
  shapes.set(5, second == 0 ? 16 : second);  // with one tile of x the register holds weights
  shapes.set(6, 16);
  shapes.set(7, 16);
  return shapes;
}

// Rows [row, row + num_rows), at most 16, by all panels.
PAGED_INLINE void multiply_one(const TilePass& pass, std::int64_t cols, int row, int num_rows, int num_panels) {
  begin_tiles(shapes_of(num_rows, 0));
  int panel = 0;
  for (; panel + 4 <= num_panels; panel += 4) multiply_one_by_four(pass, 0, cols, row, panel);
  for (; panel < num_panels; ++panel) multiply_one_by_one(pass, 0, cols, row, panel);
}

// Groups of 32 rows from `row` on, the last of which may have a smaller second tile: then it is the only one.
PAGED_INLINE void multiply_two(const TilePass& pass, std::int64_t cols, int row, int num_rows, int num_panels) {
  const int pairs = num_panels / 2 * 2;
  begin_tiles(shapes_of(kTileRowsOfX, num_rows % kPairRows == 0 ? kTileRowsOfX : num_rows - kTileRowsOfX));
  for (int panel = 0; panel < pairs; panel += 2)
    for (std::int64_t k = 0; k < cols; k += kTiledK)
      for (int r = row; r < row + num_rows; r += kPairRows)
        multiply_two_by_two(pass, k, cols - k < kTiledK ? cols : k + kTiledK, r, panel);
  if (pairs == num_panels) return;
  for (int r = row; r < row + num_rows; r += kTileRowsOfX)
    multiply_one({pass.x, pass.x_bytes, pass.panels + pairs * pass.panel_bytes, pass.panel_bytes,
                  pass.acc + pairs * kPanelRows, pass.acc_bytes},
                 cols, r, row + num_rows - r < kTileRowsOfX ? row + num_rows - r : kTileRowsOfX, 1);
}

PAGED_INLINE bool tiles_take(const LinearTile& tile) {
  return kHasTiles && tile.weights->format == PackedFormat::kBFloat16 && tile.x.dtype == DType::kBFloat16 &&
         tile.x.cols % kTileK == 0;
}

// acc[rows of the tile][acc_stride] = the products of the tile.
PAGED_INLINE void multiply_tiles(const LinearTile& tile, float* acc, int acc_stride) {
  const PackedMatrix& matrix = *tile.weights;
  const TilePass pass{.x = static_cast<const std::byte*>(tile.x.data) + 2 * tile.row_begin * tile.x.row_stride,
                      .x_bytes = 2 * tile.x.row_stride,
                      .panels = matrix.data + tile.panel_begin * matrix.panel_bytes,
                      .panel_bytes = matrix.panel_bytes,
                      .acc = acc,
                      .acc_bytes = std::int64_t{acc_stride} * 4};
  const int full = tile.num_rows / kPairRows * kPairRows, left = tile.num_rows - full;
  if (full > 0) multiply_two(pass, matrix.cols, 0, full, tile.num_panels);
  if (left > kTileRowsOfX)
    multiply_two(pass, matrix.cols, full, left, tile.num_panels);
  else if (left > 0)
    multiply_one(pass, matrix.cols, full, left, tile.num_panels);
  end_tiles();
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

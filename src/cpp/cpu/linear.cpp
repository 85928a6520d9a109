// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "base/check.h"
#include "base/divide_up.h"
#include "cpu/cpu_ops.h"
#include "cpu/kernel_table.h"
#include "cpu/packed_matrix.h"
#include "cpu/parallel_rows.h"
#include "cpu/quantised_rows.h"

namespace paged::cpu {
namespace {

// Some rows of a product, cut into items (row block, part, group of panels), row blocks innermost: neighbours in time
// share their weights.
struct Partition {
  std::int64_t row_begin;
  std::int64_t num_rows;
  std::int64_t row_blocks;
  std::int64_t rows_per_block;
  std::int64_t panels_per_group;  // at most
  const QuantisedRows* codes;

  std::int64_t groups_of(const PackedMatrix& matrix) const { return divide_up(matrix.num_panels, panels_per_group); }
};

const PackedMatrix& packed(const LinearParams& params, int part) {
  return static_cast<const PackedMatrix&>(*params.parts[part]);
}

LinearTileSize tile_size(const LinearParams& params) {
  bool bfloat16 = params.x.dtype == DType::kBFloat16 && params.x.cols % kBFloat16Cols == 0;
  for (int i = 0; i < params.num_parts; ++i) bfloat16 = bfloat16 && packed(params, i).format == PackedFormat::kBFloat16;
  return bfloat16 ? kernels().bfloat16_tile : kernels().linear_tile;
}

// Four items a thread where there is that much work, so that the last item to finish is not long alone.
Partition partition(const LinearParams& params, std::int64_t row_begin, std::int64_t num_rows, int num_threads) {
  const LinearTileSize size = tile_size(params);
  std::int64_t panels = 0;
  for (int i = 0; i < params.num_parts; ++i) panels += packed(params, i).num_panels;
  const std::int64_t blocks = std::max<std::int64_t>(1, divide_up(num_rows, size.rows));
  const std::int64_t rows = divide_up(divide_up(num_rows, blocks), size.row_step) * size.row_step;
  const std::int64_t row_blocks = divide_up(num_rows, rows);
  const std::int64_t even = panels * row_blocks / (4 * num_threads) / 2 * 2;
  return {row_begin, num_rows, row_blocks, rows, std::clamp<std::int64_t>(even, 2, size.panels), nullptr};
}

void run_item(const LinearParams& params, const Partition& cut, std::int64_t item, std::byte* scratch) {
  const std::int64_t row = item % cut.row_blocks * cut.rows_per_block;
  std::int64_t group = item / cut.row_blocks;
  std::int64_t column = 0;
  int part = 0;
  for (std::int64_t groups; group >= (groups = cut.groups_of(packed(params, part))); ++part) {
    group -= groups;
    column += params.parts[part]->rows;
  }
  const auto& matrix = packed(params, part);
  const std::int64_t per_group =
      divide_up(divide_up(matrix.num_panels, cut.groups_of(matrix)), 2) * 2;  // as even as can be
  const std::int64_t panel = group * per_group;
  kernels().linear({
      .x = params.x,
      .out = params.out,
      .codes = cut.codes,
      .weights = &matrix,
      .bias = params.bias != nullptr ? params.bias + column : nullptr,
      .row_begin = cut.row_begin + row,
      .panel_begin = panel,
      .column_begin = column,
      .num_rows = static_cast<int>(std::min(cut.rows_per_block, cut.num_rows - row)),
      .num_panels = static_cast<int>(std::min(per_group, matrix.num_panels - panel)),
      .scratch = scratch,
  });
}

void run_rows(ThreadPool& threads, const LinearParams& params, const Partition& cut) {
  std::int64_t groups = 0;
  for (int i = 0; i < params.num_parts; ++i) groups += cut.groups_of(packed(params, i));
  threads.parallel_for(cut.row_blocks * groups,
                       [&](std::int64_t item, int thread) { run_item(params, cut, item, threads.scratch(thread)); });
}

bool is_quantised(const LinearParams& params) {
  for (int i = 0; i < params.num_parts; ++i)
    if (layout_of(packed(params, i).format) != nullptr) return true;
  return false;
}

// Rows in turn, as many as the workspace holds the codes of. Few of them are quantised by the calling thread alone, in
// less time than others take to hear of it.
void run_quantised(ThreadPool& threads, const LinearParams& params) {
  const std::int64_t cols = params.x.cols, at_once = quantised_rows_at_once(cols);
  PAGED_CHECK(params.workspace != nullptr, "linear: products with quantised weights need a workspace");
  for (std::int64_t row = 0; row < params.x.rows; row += at_once) {
    const std::int64_t count = std::min(at_once, params.x.rows - row);
    auto* groups = static_cast<CodeGroup*>(params.workspace);
    const QuantisedRows codes{reinterpret_cast<std::byte*>(groups + count * (cols / kCodeGroup)), groups, row, cols};
    parallel_rows(threads, count, quantised_row_bytes(cols), [&](std::int64_t begin, std::int64_t end) {
      kernels().quantise_rows(params.x, codes, row + begin, row + end);
    });
    Partition cut = partition(params, row, count, threads.num_threads());
    cut.codes = &codes;
    run_rows(threads, params, cut);
  }
}

}  // namespace

void linear(ThreadPool& threads, const LinearParams& params) {
  if (is_quantised(params)) return run_quantised(threads, params);
  run_rows(threads, params, partition(params, 0, params.x.rows, threads.num_threads()));
}

std::int64_t linear_workspace_bytes(std::int64_t max_rows, std::int64_t max_cols) {
  const std::int64_t row_bytes = quantised_row_bytes(max_cols);
  return std::min(max_rows * row_bytes, std::max(kQuantisedBytes, kFewestQuantisedRows * row_bytes));
}

}  // namespace paged::cpu

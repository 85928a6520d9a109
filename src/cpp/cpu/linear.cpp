// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cpu/cpu_ops.h"
#include "cpu/kernel_table.h"
#include "cpu/packed_matrix.h"

namespace paged::cpu {
namespace {

// Items are (row block, part, group of panels), row blocks innermost: neighbours in time share their weights.
struct Partition {
  std::int64_t row_blocks;
  std::int64_t rows_per_block;
  std::int64_t panels_per_group;
};

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

const PackedMatrix& packed(const LinearParams& params, int part) {
  return static_cast<const PackedMatrix&>(*params.parts[part]);
}

// Four items a thread where there is that much work, so that the last item to finish is not long alone.
Partition partition(const LinearParams& params, int num_threads) {
  std::int64_t panels = 0;
  for (int i = 0; i < params.num_parts; ++i) panels += packed(params, i).num_panels;
  const std::int64_t row_blocks = divide_up(params.x.rows, kernels().linear_rows);
  const std::int64_t even = panels * row_blocks / (4 * num_threads) / 2 * 2;
  return {row_blocks, divide_up(params.x.rows, std::max<std::int64_t>(1, row_blocks)),
          std::clamp<std::int64_t>(even, 2, kMaxTilePanels)};
}

void run_item(const LinearParams& params, const Partition& cut, std::int64_t item, std::byte* scratch) {
  const std::int64_t row_begin = item % cut.row_blocks * cut.rows_per_block;
  std::int64_t group = item / cut.row_blocks;
  std::int64_t column = 0;
  int part = 0;
  for (std::int64_t groups; group >= (groups = divide_up(packed(params, part).num_panels, cut.panels_per_group));
       ++part) {
    group -= groups;
    column += params.parts[part]->rows;
  }
  const auto& matrix = packed(params, part);
  const std::int64_t panel = group * cut.panels_per_group;
  kernels().linear({
      .x = params.x,
      .out = params.out,
      .weights = &matrix,
      .bias = params.bias != nullptr ? params.bias + column : nullptr,
      .row_begin = row_begin,
      .panel_begin = panel,
      .column_begin = column,
      .num_rows = static_cast<int>(std::min(cut.rows_per_block, params.x.rows - row_begin)),
      .num_panels = static_cast<int>(std::min(cut.panels_per_group, matrix.num_panels - panel)),
      .scratch = scratch,
  });
}

}  // namespace

void linear(ThreadPool& threads, const LinearParams& params) {
  const Partition cut = partition(params, threads.num_threads());
  std::int64_t groups = 0;
  for (int i = 0; i < params.num_parts; ++i) groups += divide_up(packed(params, i).num_panels, cut.panels_per_group);
  threads.parallel_for(cut.row_blocks * groups,
                       [&](std::int64_t item, int thread) { run_item(params, cut, item, threads.scratch(thread)); });
}

}  // namespace paged::cpu

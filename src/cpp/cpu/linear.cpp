// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <span>

#include "base/check.h"
#include "base/divide_up.h"
#include "cpu/cpu_ops.h"
#include "cpu/kernel_table.h"
#include "cpu/packed_matrix.h"
#include "cpu/parallel_rows.h"
#include "cpu/quantised_rows.h"

namespace paged::cpu {
namespace {

// How panels are dealt out in items, and what that costs.
struct Dealing {
  std::int64_t panels_per_group;  // at most
  std::int64_t load;              // rows times panels of the busiest thread
};

// Some rows of a product, cut into items (row block, part, group of panels), row blocks innermost: neighbours in time
// share their weights.
struct Partition {
  std::int64_t row_begin;
  std::int64_t num_rows;
  std::int64_t row_blocks;
  std::int64_t rows_per_block;
  Dealing dealing;
  int num_nodes;
  std::int64_t by_turns;  // threads that take neighbouring items
  const QuantisedRows* codes;

  std::int64_t groups_of(const PackedMatrix& matrix) const {
    return divide_up(matrix.num_panels, dealing.panels_per_group);
  }

  // From a group to the one that its thread reads next.
  std::int64_t groups_ahead() const { return std::max<std::int64_t>(1, by_turns / row_blocks); }

  // Threads take row blocks by turns.
  bool is_new(std::int64_t row_block) const { return row_block < by_turns; }

  struct Panels {
    std::int64_t begin;
    std::int64_t count;
  };
  // Groups of a matrix are as even as can be.
  Panels panels_of(const PackedMatrix& matrix, std::int64_t group) const {
    const std::int64_t count = divide_up(divide_up(matrix.num_panels, groups_of(matrix)), 2) * 2;
    return {group * count, std::min(count, matrix.num_panels - group * count)};
  }

  // Lets a tile ask for panels that its thread reads next. Threads take row blocks by turns: in all turns of a group
  // each has asked for all of the next one.
  void ask_for(const PackedMatrix& matrix, Panels panels, std::int64_t row_block, LinearTile& tile) const {
    const std::int64_t turns = divide_up(row_blocks, by_turns), turn = row_block / by_turns;
    tile.next_bytes = divide_up(panels.count * matrix.panel_bytes, turns);
    tile.next = matrix.data + panels.begin * matrix.panel_bytes + turn * tile.next_bytes;
  }
};

// Whether weights that come next have room in the nearest cache beside those that are multiplied. One of 32 KB has not,
// and of its misses too few can be in flight at once: a Zen 4 gets 13 GB/s by them and 27 by those of the second cache.
bool asks_nearest() {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  static const bool is_large = sysconf(_SC_LEVEL1_DCACHE_SIZE) >= 48 * 1024;
  return is_large;
#else
  return false;
#endif
}

const PackedMatrix& packed(const WeightMatrix* matrix) { return static_cast<const PackedMatrix&>(*matrix); }
const PackedMatrix& packed(const LinearParams& params, int part) { return packed(params.parts[part]); }

int num_quantised(const LinearParams& params) {
  int count = 0;
  for (int i = 0; i < params.num_parts; ++i) count += layout_of(packed(params, i).format) != nullptr ? 1 : 0;
  return count;
}

bool has_half_groups(const LinearParams& params) {
  for (int i = 0; i < params.num_parts; ++i) {
    const QuantLayout* layout = layout_of(packed(params, i).format);
    if (layout != nullptr && layout->group_k < kCodeGroup) return true;
  }
  return false;
}

LinearTileSize tile_size(const LinearParams& params, const QuantisedRows* codes) {
  if (codes != nullptr && codes->layout == CodeLayout::kTiles) return kernels().code_tile;
  if (num_quantised(params) == params.num_parts) return kernels().integer_tile;
  bool bfloat16 = params.x.dtype == DType::kBFloat16 && params.x.cols % kBFloat16Cols == 0;
  for (int i = 0; i < params.num_parts; ++i) bfloat16 = bfloat16 && packed(params, i).format == PackedFormat::kBFloat16;
  return bfloat16 ? kernels().bfloat16_tile : kernels().linear_tile;
}

// Four items for each thread where there is that much work, so that the last one to finish is not long alone, or so
// many more or fewer that all threads have as many.
Dealing deal(std::span<const WeightMatrix* const> parts, std::int64_t row_blocks, std::int64_t rows_per_block,
             int num_threads, int most) {
  std::int64_t panels = 0;
  for (const WeightMatrix* part : parts) panels += packed(part).num_panels;
  const std::int64_t four_each = std::clamp<std::int64_t>(panels * row_blocks / (4 * num_threads) / 2 * 2, 2, most);
  Dealing best{four_each, std::numeric_limits<std::int64_t>::max()};
  for (const std::int64_t count : {four_each, four_each + 2, four_each - 2}) {
    if (count < 2 || count > most) continue;
    std::int64_t items = 0;
    for (const WeightMatrix* part : parts) items += row_blocks * divide_up(packed(part).num_panels, count);
    const std::int64_t load = divide_up(items, num_threads) * count * rows_per_block;
    if (load < best.load) best = {count, load};
  }
  return best;
}

// Tiles of fewer rows read weights more often: not for less than a tenth of the time.
constexpr std::int64_t kFewestTileRows = 32;
constexpr double kWorthIt = 0.9;

// Items are dealt out over the panels of the first `dealt` parts.
Partition partition(const LinearParams& params, int dealt, std::int64_t row_begin, std::int64_t num_rows,
                    const ThreadPool& threads, const QuantisedRows* codes) {
  const LinearTileSize size = tile_size(params, codes);
  const std::span<const WeightMatrix* const> parts(params.parts, static_cast<std::size_t>(dealt));
  const auto cut = [&](std::int64_t most_rows) -> Partition {
    const std::int64_t blocks = std::max<std::int64_t>(1, divide_up(num_rows, most_rows));
    // At least one, so that of no rows there are no blocks.
    const std::int64_t some_rows = std::max<std::int64_t>(1, divide_up(num_rows, blocks));
    const std::int64_t rows = divide_up(some_rows, size.row_step) * size.row_step;
    const std::int64_t row_blocks = divide_up(num_rows, rows);
    const Dealing dealing = deal(parts, row_blocks, rows, threads.num_threads(), size.panels);
    return {row_begin, num_rows, row_blocks, rows, dealing, threads.num_nodes(), threads.threads_by_turns(), codes};
  };
  Partition best = cut(size.rows);
  for (std::int64_t rows = size.rows / 2; rows >= kFewestTileRows && rows < num_rows; rows /= 2) {
    const Partition smaller = cut(rows);
    if (smaller.dealing.load < kWorthIt * best.dealing.load) best = smaller;
  }
  return best;
}

// A group of the panels of all parts, counted through: node by node those of all parts, where there are several.
struct PartGroup {
  int part;  // num_parts: there is no such group
  std::int64_t group;
  std::int64_t column;  // of out, where the part begins
};

PartGroup find_group(const LinearParams& params, const Partition& cut, std::int64_t group) {
  for (int node = 0; node < cut.num_nodes; ++node) {
    std::int64_t column = 0;
    for (int part = 0; part < params.num_parts; ++part) {
      const std::int64_t groups = cut.groups_of(packed(params, part));
      const std::int64_t begin = begin_of_part(groups, node, cut.num_nodes);
      const std::int64_t end = begin_of_part(groups, node + 1, cut.num_nodes);
      if (group < end - begin) return {part, begin + group, column};
      group -= end - begin;
      column += params.parts[part]->rows;
    }
  }
  return {params.num_parts, 0, 0};
}

void run_item(const LinearParams& params, const Partition& cut, std::int64_t item, std::byte* scratch) {
  const std::int64_t row_block = item % cut.row_blocks, row = row_block * cut.rows_per_block;
  const PartGroup at = find_group(params, cut, item / cut.row_blocks);
  const PackedMatrix& matrix = packed(params, at.part);
  const Partition::Panels panels = cut.panels_of(matrix, at.group);
  LinearTile tile{
      .x = params.x,
      .out = params.out,
      .codes = cut.codes,
      .weights = &matrix,
      .bias = params.bias != nullptr ? params.bias + at.column : nullptr,
      .row_begin = cut.row_begin + row,
      .panel_begin = panels.begin,
      .column_begin = at.column,
      .num_rows = static_cast<int>(std::min(cut.rows_per_block, cut.num_rows - row)),
      .num_panels = static_cast<int>(panels.count),
      .scratch = scratch,
      .is_new = cut.is_new(row_block),
      .next = matrix.data + panels.begin * matrix.panel_bytes,
      .asks_nearest = asks_nearest(),
  };
  const PartGroup next = find_group(params, cut, item / cut.row_blocks + cut.groups_ahead());
  if (next.part < params.num_parts) {
    const PackedMatrix& other = packed(params, next.part);
    cut.ask_for(other, cut.panels_of(other, next.group), row_block, tile);
  }
  kernels().linear(tile);
}

void run_rows(ThreadPool& threads, const LinearParams& params, const Partition& cut) {
  std::int64_t groups = 0;
  for (int i = 0; i < params.num_parts; ++i) groups += cut.groups_of(packed(params, i));
  threads.parallel_for(cut.row_blocks * groups,
                       [&](std::int64_t item, int thread) { run_item(params, cut, item, threads.scratch(thread)); });
}

// Calls run(cut) for all rows, or where something is quantised for as many in turn as the workspace holds the codes of.
// Few of them are quantised by the calling thread alone, in less time than others take to hear of it.
template <typename Run>
void run_in_turn(ThreadPool& threads, const LinearParams& params, int dealt, Run run) {
  if (num_quantised(params) == 0) return run(partition(params, dealt, 0, params.x.rows, threads, nullptr));
  const std::int64_t cols = params.x.cols;
  const int tile_rows = params.x.dtype == DType::kFloat32 ? kernels().fine_tile_rows : kernels().coarse_tile_rows;
  const bool tiled = tile_rows > 0 && params.x.rows >= tile_rows && num_quantised(params) == params.num_parts;
  const std::int64_t at_once = quantised_rows_at_once(params.x.rows, cols, tiled, threads.num_threads());
  PAGED_CHECK(params.workspace != nullptr, "linear: products with quantised weights need a workspace");
  for (std::int64_t row = 0; row < params.x.rows; row += at_once) {
    const std::int64_t count = std::min(at_once, params.x.rows - row);
    const QuantisedRows codes{static_cast<std::byte*>(params.workspace), row, cols,
                              tiled ? CodeLayout::kTiles : CodeLayout::kRows, has_half_groups(params)};
    const std::int64_t unit = tiled ? kernels().code_tile.row_step : 1;  // rows that share a tile are one thread's
    parallel_rows(threads, divide_up(count, unit), unit * quantised_row_bytes(cols, tiled),
                  [&](std::int64_t begin, std::int64_t end) {
                    kernels().quantise_rows(params.x, codes, row + begin * unit, row + std::min(count, end * unit));
                  });
    run(partition(params, dealt, row, count, threads, &codes));
  }
}

MatrixView part_of(MatrixView view, std::int64_t row, std::int64_t column, std::int64_t rows, std::int64_t cols) {
  view.data = static_cast<std::byte*>(view.data) + (row * view.row_stride + column) * size_of(view.dtype);
  view.rows = rows, view.cols = cols;
  return view;
}

// Behind what a kernel needs of a thread's scratch: products of an item that become what its activation makes of them.
MatrixView products_in(std::byte* scratch, std::int64_t rows, std::int64_t cols, DType dtype) {
  constexpr std::int64_t kOffset = 256 * 1024;
  PAGED_INVARIANT(kOffset + rows * cols * size_of(dtype) <= static_cast<std::int64_t>(ThreadPool::kScratchBytes),
                  "gated_linear: an item of ", rows, " rows and ", cols, " columns");
  return {scratch + kOffset, rows, cols, cols, dtype};
}

void run_gated_item(const GatedLinearParams& params, const Partition& cut, std::int64_t item, std::byte* scratch) {
  const auto& gate = static_cast<const PackedMatrix&>(*params.matrix);
  const auto& up = static_cast<const PackedMatrix&>(*params.up);
  const std::int64_t row_block = item % cut.row_blocks, group = item / cut.row_blocks;
  const Partition::Panels panels = cut.panels_of(gate, group);
  const std::int64_t first = row_block * cut.rows_per_block, row = cut.row_begin + first;
  const std::int64_t rows = std::min(cut.rows_per_block, cut.num_rows - first);
  const std::int64_t column = panels.begin * kPanelRows, width = panels.count * kPanelRows;
  const std::int64_t cols = std::min(width, gate.rows - column);
  const MatrixView products = products_in(scratch, rows, 2 * width, params.out.dtype);
  const MatrixView gates = part_of(products, 0, 0, rows, cols), ups = part_of(products, 0, width, rows, cols);
  QuantisedRows codes{};  // from the item's first row on
  if (cut.codes != nullptr) codes = *cut.codes, codes.first_row -= row;
  LinearTile tile{.x = part_of(params.x, row, 0, rows, params.x.cols),
                  .out = gates,
                  .codes = &codes,
                  .weights = &gate,
                  .bias = nullptr,
                  .row_begin = 0,
                  .panel_begin = panels.begin,
                  .column_begin = -column,
                  .num_rows = static_cast<int>(rows),
                  .num_panels = static_cast<int>(panels.count),
                  .scratch = scratch,
                  .is_new = cut.is_new(row_block),
                  .next = gate.data + panels.begin * gate.panel_bytes,
                  .asks_nearest = asks_nearest()};
  if (cut.is_new(row_block)) cut.ask_for(up, panels, 0, tile);
  kernels().linear(tile);
  tile.out = ups, tile.weights = &up, tile.next_bytes = 0;
  const std::int64_t next = group + cut.groups_ahead();
  if (next < cut.groups_of(gate)) cut.ask_for(gate, cut.panels_of(gate, next), row_block, tile);
  kernels().linear(tile);
  kernels().gated_activation({gates, ups, params.activation, part_of(params.out, row, column, rows, cols)}, 0, rows);
}

}  // namespace

// An item's products never leave its thread's caches.
void gated_linear(ThreadPool& threads, const GatedLinearParams& params) {
  const WeightMatrix* parts[] = {params.matrix, params.up};
  const LinearParams both{params.x, parts, 2, nullptr, params.gate_up, params.workspace};
  run_in_turn(threads, both, 1, [&](const Partition& cut) {
    threads.parallel_for(cut.row_blocks * cut.groups_of(packed(both, 0)), [&](std::int64_t item, int thread) {
      run_gated_item(params, cut, item, threads.scratch(thread));
    });
  });
}

void linear(ThreadPool& threads, const LinearParams& params) {
  run_in_turn(threads, params, params.num_parts, [&](const Partition& cut) { run_rows(threads, params, cut); });
}

// For either layout: where few rows come, or parts are not all quantised, codes are not tiled.
std::int64_t linear_workspace_bytes(std::int64_t max_rows, std::int64_t max_cols, int num_threads) {
  std::int64_t row_bytes = quantised_row_bytes(max_cols, false);
  if (kernels().fine_tile_rows > 0) row_bytes = std::max(row_bytes, quantised_row_bytes(max_cols, true));
  return std::min(divide_up(max_rows, kRowsOfParts) * kRowsOfParts * row_bytes,
                  std::max(num_threads * kQuantisedBytesOfThread, kFewestQuantisedRows * row_bytes));
}

}  // namespace paged::cpu

// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "base/check.h"
#include "cpu/gguf_blocks.h"
#include "cpu/packed_matrix.h"
#include "cpu/thread_pool.h"

namespace paged {
namespace {

using cpu::kPanelRows;
using cpu::PackedFormat;
using cpu::QuantLayout;

struct TypeName {
  WeightType type;
  std::string_view name;
  PackedFormat packed;
};

constexpr TypeName kTypes[] = {
    {WeightType::kFloat32, "float32", PackedFormat::kFloat32},
    {WeightType::kBFloat16, "bfloat16", PackedFormat::kBFloat16},
    {WeightType::kFloat16, "float16", PackedFormat::kFloat16},
    {WeightType::kQ8_0, "q8_0", PackedFormat::kQ8},
    {WeightType::kQ4_0, "q4_0", PackedFormat::kQ4},
    {WeightType::kQ4_1, "q4_1", PackedFormat::kQ4Min},
    {WeightType::kQ5_0, "q5_0", PackedFormat::kQ8},
    {WeightType::kQ5_1, "q5_1", PackedFormat::kQ8Min},
    {WeightType::kQ4_K, "q4_k", PackedFormat::kQ4K},
    {WeightType::kQ5_K, "q5_k", PackedFormat::kQ5K},
    {WeightType::kQ6_K, "q6_k", PackedFormat::kQ6K},
};

const TypeName& entry_of(WeightType type) {
  for (const TypeName& entry : kTypes)
    if (entry.type == type) return entry;
  PAGED_INVARIANT(false, "weight type ", static_cast<int>(type));
  return kTypes[0];
}

// One panel's source rows; null past the last row of the matrix.
struct PanelSource {
  const std::byte* rows[kPanelRows];
};

PanelSource panel_source(const WeightSource& source, std::int64_t row_bytes, std::int64_t panel) {
  PanelSource out{};
  for (int lane = 0; lane < kPanelRows; ++lane) {
    const std::int64_t row = panel * kPanelRows + lane;
    if (row >= source.rows) break;
    const std::int64_t from = source.row_order != nullptr ? source.row_order[row] : row;
    out.rows[lane] = static_cast<const std::byte*>(source.data) + from * row_bytes;
  }
  return out;
}

// [16 rows][cols] -> [cols / kGroup][16][kGroup], with cols filled up to a multiple of 8.
template <typename Word, int kGroup>
void pack_floats(const PanelSource& source, std::int64_t cols, std::byte* panel) {
  constexpr auto kSize = static_cast<std::int64_t>(sizeof(Word));
  const std::int64_t padded = (cols + 7) / 8 * 8;
  for (std::int64_t k = 0; k < padded; ++k) {
    for (int lane = 0; lane < kPanelRows; ++lane) {
      std::byte* to = panel + ((k / kGroup * kPanelRows + lane) * kGroup + k % kGroup) * kSize;
      if (k < cols && source.rows[lane] != nullptr)
        std::memcpy(to, source.rows[lane] + k * kSize, sizeof(Word));
      else
        std::memset(to, 0, sizeof(Word));
    }
  }
}

void place_header(const cpu::GgufBlock& block, const QuantLayout& layout, int lane, std::byte* to) {
  std::memcpy(to + 2 * lane, &block.d, 2);
  if (layout.has_min) std::memcpy(to + 32 + 2 * lane, &block.min, 2);
  if (!layout.sub_scaled) return;
  for (int group = 0; group < layout.groups(); ++group) {
    const int at = group * kPanelRows + lane;
    to[layout.scales_offset() + at] = static_cast<std::byte>(block.scales[group]);
    if (layout.has_min) to[layout.mins_offset() + at] = static_cast<std::byte>(block.mins[group]);
  }
}

void place_codes(const cpu::GgufBlock& block, const QuantLayout& layout, int lane, std::byte* codes) {
  if (layout.bits == 8) {
    for (int k = 0; k < layout.block_k; k += 4) std::memcpy(codes + k / 4 * 64 + lane * 4, block.codes + k, 4);
    return;
  }
  for (int k = 0; k < layout.block_k; k += 8)
    for (int b = 0; b < 4; ++b)
      codes[k / 8 * 64 + lane * 4 + b] = static_cast<std::byte>(block.codes[k + b] | (block.codes[k + 4 + b] << 4));
}

void pack_blocks(const PanelSource& source, WeightType type, const QuantLayout& layout, std::int64_t cols,
                 std::byte* panel) {
  const std::int64_t num_blocks = cols / layout.block_k;
  const int source_bytes = cpu::block_size_of(type).num_bytes;
  for (std::int64_t b = 0; b < num_blocks; ++b) {
    std::byte* to = panel + b * layout.block_bytes();
    for (int lane = 0; lane < kPanelRows; ++lane) {
      cpu::GgufBlock block{};
      if (source.rows[lane] != nullptr) cpu::read_block(type, source.rows[lane] + b * source_bytes, block);
      place_header(block, layout, lane, to);
      place_codes(block, layout, lane, to + layout.codes_offset());
    }
  }
}

void pack_panel(const PanelSource& source, WeightType type, cpu::PackedMatrix& matrix, std::int64_t panel) {
  std::byte* to = matrix.data + panel * matrix.panel_bytes;
  if (const QuantLayout* layout = cpu::layout_of(matrix.format))
    pack_blocks(source, type, *layout, matrix.cols, to);
  else if (matrix.format == PackedFormat::kFloat32)
    pack_floats<std::uint32_t, 1>(source, matrix.cols, to);
  else if (matrix.format == PackedFormat::kFloat16)
    pack_floats<std::uint16_t, 1>(source, matrix.cols, to);
  else
    pack_floats<std::uint16_t, 2>(source, matrix.cols, to);
}

}  // namespace

cpu::PackedFormat cpu::packed_format_of(WeightType type) { return entry_of(type).packed; }

WeightType parse_weight_type(std::string_view name) {
  std::string known;
  for (const TypeName& entry : kTypes) {
    if (entry.name == name) return entry.type;
    known += known.empty() ? "" : ", ";
    known += entry.name;
  }
  detail::throw_invalid_argument("weight type '", name, "' is not known; known: ", known);
}

std::string_view name_of(WeightType type) { return entry_of(type).name; }

WeightMatrixPtr pack_matrix(const WeightSource& source, ThreadPool& threads) {
  const std::int64_t row_bytes = cpu::checked_row_bytes(source);
  auto matrix = std::make_unique<cpu::PackedMatrix>(source.rows, source.cols, cpu::packed_format_of(source.type));
  threads.parallel_for(matrix->num_panels, [&](std::int64_t panel, int) {
    pack_panel(panel_source(source, row_bytes, panel), source.type, *matrix, panel);
  });
  return matrix;
}

}  // namespace paged

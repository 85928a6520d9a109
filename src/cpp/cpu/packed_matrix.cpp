// SPDX-License-Identifier: Apache-2.0
#include "cpu/packed_matrix.h"

#include <cstring>
#include <utility>

#include "base/divide_up.h"
#include "cpu/float16.h"

namespace paged::cpu {
namespace {

using cpu::PackedFormat;
using cpu::QuantLayout;

std::int64_t panel_bytes_of(std::int64_t cols, PackedFormat format) {
  const std::int64_t padded = (cols + 7) / 8 * 8;
  if (const QuantLayout* layout = cpu::layout_of(format)) return cols / layout->block_k * layout->block_bytes();
  return padded * cpu::kPanelRows * (format == PackedFormat::kFloat32 ? 4 : 2);
}

float half_at(const std::byte* p) {
  cpu::Float16 value;
  std::memcpy(&value, p, sizeof(value));
  return cpu::to_float(value);
}

struct Scale {
  float scale;
  float min;
};

Scale group_scale(const std::byte* block, const QuantLayout& layout, int group, int lane) {
  Scale out{half_at(block + 2 * lane), 0.0f};
  if (layout.has_min) out.min = half_at(block + 32 + 2 * lane);
  if (layout.sub_scaled) {
    const int at = group * cpu::kPanelRows + lane;
    out.scale *= static_cast<float>(static_cast<std::int8_t>(block[layout.scales_offset() + at]));
    if (layout.has_min) out.min *= -static_cast<float>(static_cast<std::int8_t>(block[layout.mins_offset() + at]));
  }
  return out;
}

int code_at(const std::byte* codes, const QuantLayout& layout, int k, int lane) {
  if (layout.bits == 4) {
    const int byte = std::to_integer<int>(codes[(k / 8) * 64 + lane * 4 + k % 4]);
    return (k % 8 < 4) ? byte & 0xf : byte >> 4;
  }
  return std::to_integer<int>(codes[(k / 4) * 64 + lane * 4 + k % 4]);
}

void unpack_quantised(const std::byte* panel, const QuantLayout& layout, int lane, std::int64_t cols, float* out) {
  for (std::int64_t k0 = 0; k0 < cols; k0 += layout.block_k, panel += layout.block_bytes()) {
    for (int group = 0; group < layout.groups(); ++group) {
      const Scale s = group_scale(panel, layout, group, lane);
      for (int i = 0; i < layout.group_k; ++i) {
        const int k = group * layout.group_k + i;
        const int code = code_at(panel + layout.codes_offset(), layout, k, lane) - layout.zero;
        out[k0 + k] = static_cast<float>(code) * s.scale + s.min;
      }
    }
  }
}

template <typename T>
T element(const std::byte* panel, std::int64_t index) {
  T value;
  std::memcpy(&value, panel + index * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
  return value;
}

}  // namespace

PackedSize::PackedSize(std::int64_t rows, std::int64_t cols, PackedFormat format)
    : num_panels(divide_up(rows, std::int64_t{kPanelRows})), panel_bytes(panel_bytes_of(cols, format)) {}

PackedMatrix::PackedMatrix(std::int64_t num_rows, std::int64_t num_cols, PackedFormat packed_format,
                           std::shared_ptr<const AlignedBuffer> memory, std::int64_t offset)
    : WeightMatrix(num_rows, num_cols),
      format(packed_format),
      num_panels(PackedSize(num_rows, num_cols, packed_format).num_panels),
      panel_bytes(PackedSize(num_rows, num_cols, packed_format).panel_bytes),
      data(memory->data() + offset),
      memory_(std::move(memory)) {}

void unpack_row(const PackedMatrix& matrix, std::int64_t row, float* out) {
  const std::byte* panel = matrix.data + row / kPanelRows * matrix.panel_bytes;
  const int lane = static_cast<int>(row % kPanelRows);
  if (const QuantLayout* layout = layout_of(matrix.format)) {
    unpack_quantised(panel, *layout, lane, matrix.cols, out);
    return;
  }
  for (std::int64_t k = 0; k < matrix.cols; ++k) {
    if (matrix.format == PackedFormat::kFloat32)
      out[k] = element<float>(panel, k * kPanelRows + lane);
    else if (matrix.format == PackedFormat::kFloat16)
      out[k] = to_float(element<Float16>(panel, k * kPanelRows + lane));
    else
      out[k] = to_float(element<BFloat16>(panel, (k / 2 * kPanelRows + lane) * 2 + k % 2));
  }
}

}  // namespace paged::cpu

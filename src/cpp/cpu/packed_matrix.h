// SPDX-License-Identifier: Apache-2.0
// A weight matrix in the form the CPU kernels read: panels of 16 output rows (the last one filled up with zeros), each
// panel contiguous along the input features k, which are filled up with zeros to a multiple of 8. One 16-lane vector is
// the same k of 16 rows, whatever the instruction set. Its bytes may lie among those of others; immutable once packed.
//
//   float32, float16   [K][16]
//   bfloat16           [K / 2][16][2]                    pairs, as dpbf16 and AMX tiles read them
//   quantised          blocks of block_k along K, each:  d f16[16] | min f16[16] | scales i8[groups][16] |
//                      mins i8[groups][16] | codes       (the parts a format lacks are left out)
//       8-bit codes    [block_k / 4][16][4]              4 consecutive k of one row in a 32-bit word
//       4-bit codes    [block_k / 8][16][4]              byte b: low nibble is k + b, high nibble k + 4 + b
//
// weight = (code - zero) * scale + min, where scale = d (* scales[group]) and min is 0, or the block's, or -min *
// mins[group]. Codes are unsigned, as vpdpbusd wants them. Every product is exact in float32, so the result equals the
// checkpoint's own dequantisation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/aligned_buffer.h"
#include "ops/weights.h"

namespace paged::cpu {

inline constexpr int kPanelRows = 16;

enum class PackedFormat : std::uint8_t { kFloat32, kBFloat16, kFloat16, kQ8, kQ8Min, kQ4, kQ4Min, kQ4K, kQ5K, kQ6K };

PackedFormat packed_format_of(WeightType type);

struct QuantLayout {
  int block_k;  // weights of a row that share d
  int group_k;  // weights of a row that share a scale
  int bits;     // of a stored code: 4 or 8
  int zero;     // the code of weight 0 where there is no min
  bool has_min;
  bool sub_scaled;  // the group's scale and min are 8-bit multiples of the block's

  constexpr int groups() const { return block_k / group_k; }
  constexpr int scales_offset() const { return has_min ? 64 : 32; }
  constexpr int mins_offset() const { return scales_offset() + groups() * kPanelRows; }
  constexpr int codes_offset() const {
    if (!sub_scaled) return scales_offset();
    return has_min ? mins_offset() + groups() * kPanelRows : mins_offset();
  }
  constexpr int block_bytes() const { return codes_offset() + block_k * kPanelRows * bits / 8; }
};

inline constexpr QuantLayout kQ8Layout{32, 32, 8, 128, false, false};  // Q8_0, Q5_0
inline constexpr QuantLayout kQ8MinLayout{32, 32, 8, 0, true, false};  // Q5_1
inline constexpr QuantLayout kQ4Layout{32, 32, 4, 8, false, false};    // Q4_0
inline constexpr QuantLayout kQ4MinLayout{32, 32, 4, 0, true, false};  // Q4_1
inline constexpr QuantLayout kQ4KLayout{256, 32, 4, 0, true, true};
inline constexpr QuantLayout kQ5KLayout{256, 32, 8, 0, true, true};
inline constexpr QuantLayout kQ6KLayout{256, 16, 8, 32, false, true};

// Null for the float formats.
constexpr const QuantLayout* layout_of(PackedFormat format) {
  switch (format) {
    case PackedFormat::kQ8: return &kQ8Layout;
    case PackedFormat::kQ8Min: return &kQ8MinLayout;
    case PackedFormat::kQ4: return &kQ4Layout;
    case PackedFormat::kQ4Min: return &kQ4MinLayout;
    case PackedFormat::kQ4K: return &kQ4KLayout;
    case PackedFormat::kQ5K: return &kQ5KLayout;
    case PackedFormat::kQ6K: return &kQ6KLayout;
    default: return nullptr;
  }
}

// What a matrix takes in memory.
struct PackedSize {
  PackedSize(std::int64_t rows, std::int64_t cols, PackedFormat format);

  std::int64_t num_bytes() const { return num_panels * panel_bytes; }

  std::int64_t num_panels;
  std::int64_t panel_bytes;
};

class PackedMatrix final : public WeightMatrix {
 public:
  // Its bytes are those of `memory` from `offset` on, a multiple of 64.
  PackedMatrix(std::int64_t num_rows, std::int64_t num_cols, PackedFormat packed_format,
               std::shared_ptr<const AlignedBuffer> memory, std::int64_t offset);

  std::int64_t num_bytes() const override { return num_panels * panel_bytes; }

  const PackedFormat format;
  const std::int64_t num_panels;
  const std::int64_t panel_bytes;
  std::byte* const data;  // [num_panels, panel_bytes], 64-byte aligned

 private:
  std::shared_ptr<const AlignedBuffer> memory_;
};

// Writes row `row` as float32 to out[0 .. cols): the exact values the linear kernels multiply by.
void unpack_row(const PackedMatrix& matrix, std::int64_t row, float* out);

}  // namespace paged::cpu

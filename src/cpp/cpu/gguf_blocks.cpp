// SPDX-License-Identifier: Apache-2.0
#include "cpu/gguf_blocks.h"

#include <cstring>

#include "base/check.h"
#include "cpu/float16.h"
#include "cpu/packed_matrix.h"

namespace paged::cpu {
namespace {

using Bytes = const std::uint8_t*;

std::uint16_t read_u16(Bytes p) { return static_cast<std::uint16_t>(p[0] | (p[1] << 8)); }
std::uint32_t read_u32(Bytes p) { return read_u16(p) | (static_cast<std::uint32_t>(read_u16(p + 2)) << 16); }
std::uint8_t byte(int x) { return static_cast<std::uint8_t>(x); }

void read_nibbles(Bytes source, GgufBlock& block) {
  for (int i = 0; i < 16; ++i) {
    block.codes[i] = byte(source[i] & 0xf);
    block.codes[i + 16] = byte(source[i] >> 4);
  }
}

void add_fifth_bits(std::uint32_t bits, int zero, GgufBlock& block) {
  for (int i = 0; i < 32; ++i) block.codes[i] = byte(zero + block.codes[i] + static_cast<int>((bits >> i) & 1u) * 16);
}

// The 6-bit scales and mins of Q4_K and Q5_K: eight of each in twelve bytes.
void read_k_scales(Bytes packed, GgufBlock& block) {
  for (int i = 0; i < 4; ++i) {
    block.scales[i] = static_cast<std::int8_t>(packed[i] & 63);
    block.mins[i] = static_cast<std::int8_t>(packed[i + 4] & 63);
    block.scales[i + 4] = static_cast<std::int8_t>((packed[i + 8] & 0xf) | ((packed[i] >> 6) << 4));
    block.mins[i + 4] = static_cast<std::int8_t>((packed[i + 8] >> 4) | ((packed[i + 4] >> 6) << 4));
  }
}

// Nibbles of Q4_K and Q5_K: each run of 32 bytes holds group 2i in its low and group 2i + 1 in its high nibbles.
void read_k_nibbles(Bytes source, GgufBlock& block) {
  for (int i = 0; i < 128; ++i) {
    const int at = i / 32 * 64 + i % 32;
    block.codes[at] = byte(source[i] & 0xf);
    block.codes[at + 32] = byte(source[i] >> 4);
  }
}

void read_q4_k(Bytes p, GgufBlock& block) {
  block.d = read_u16(p);
  block.min = read_u16(p + 2);
  read_k_scales(p + 4, block);
  read_k_nibbles(p + 16, block);
}

void read_q5_k(Bytes p, GgufBlock& block) {
  block.d = read_u16(p);
  block.min = read_u16(p + 2);
  read_k_scales(p + 4, block);
  read_k_nibbles(p + 48, block);
  for (int i = 0; i < 256; ++i) block.codes[i] = byte(block.codes[i] | (((p[16 + i % 32] >> (i / 32)) & 1) << 4));
}

void read_q6_k(Bytes p, GgufBlock& block) {
  std::memcpy(block.scales, p + 192, 16);
  block.d = read_u16(p + 208);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128;
    const int quarter = i % 128 / 32;
    const int low = p[half * 64 + (quarter % 2) * 32 + i % 32] >> (quarter / 2 * 4) & 0xf;
    const int high = p[128 + half * 32 + i % 32] >> (quarter * 2) & 3;
    block.codes[i] = byte(low | (high << 4));
  }
}

// The values of one block.
void dequantise(const GgufBlock& block, const QuantLayout& layout, float* out) {
  const float d = to_float(Float16{block.d}), block_min = layout.has_min ? to_float(Float16{block.min}) : 0.0f;
  for (int group = 0; group < layout.groups(); ++group) {
    const float scale = layout.sub_scaled ? d * static_cast<float>(block.scales[group]) : d;
    const float min =
        layout.sub_scaled && layout.has_min ? block_min * -static_cast<float>(block.mins[group]) : block_min;
    for (int k = group * layout.group_k; k < (group + 1) * layout.group_k; ++k)
      out[k] = static_cast<float>(block.codes[k] - layout.zero) * scale + min;
  }
}

}  // namespace

GgufBlockSize block_size_of(WeightType type) {
  switch (type) {
    case WeightType::kFloat32: return {1, 4};
    case WeightType::kBFloat16: return {1, 2};
    case WeightType::kFloat16: return {1, 2};
    case WeightType::kQ8_0: return {32, 34};
    case WeightType::kQ4_0: return {32, 18};
    case WeightType::kQ4_1: return {32, 20};
    case WeightType::kQ5_0: return {32, 22};
    case WeightType::kQ5_1: return {32, 24};
    case WeightType::kQ4_K: return {256, 144};
    case WeightType::kQ5_K: return {256, 176};
    case WeightType::kQ6_K: return {256, 210};
  }
  PAGED_INVARIANT(false, "weight type ", static_cast<int>(type));
  return {};
}

void read_block(WeightType type, const std::byte* source, GgufBlock& block) {
  const Bytes p = reinterpret_cast<Bytes>(source);
  block.d = read_u16(p);
  switch (type) {
    case WeightType::kQ8_0:
      for (int i = 0; i < 32; ++i) block.codes[i] = byte(p[2 + i] ^ 0x80);  // + 128
      return;
    case WeightType::kQ4_0: read_nibbles(p + 2, block); return;
    case WeightType::kQ4_1:
      block.min = read_u16(p + 2);
      read_nibbles(p + 4, block);
      return;
    case WeightType::kQ5_0:
      read_nibbles(p + 6, block);
      add_fifth_bits(read_u32(p + 2), kQ8Layout.zero - 16, block);
      return;
    case WeightType::kQ5_1:
      block.min = read_u16(p + 2);
      read_nibbles(p + 8, block);
      add_fifth_bits(read_u32(p + 4), 0, block);
      return;
    case WeightType::kQ4_K: read_q4_k(p, block); return;
    case WeightType::kQ5_K: read_q5_k(p, block); return;
    case WeightType::kQ6_K: read_q6_k(p, block); return;
    default: PAGED_INVARIANT(false, name_of(type), " has no blocks");
  }
}

void read_row(WeightType type, const std::byte* row, std::int64_t cols, float* out) {
  const QuantLayout* layout = layout_of(packed_format_of(type));
  PAGED_INVARIANT(layout != nullptr, name_of(type), " has no blocks");
  const int num_bytes = block_size_of(type).num_bytes;
  for (std::int64_t k = 0; k < cols; k += layout->block_k, row += num_bytes) {
    GgufBlock block;
    read_block(type, row, block);
    dequantise(block, *layout, out + k);
  }
}

std::int64_t checked_row_bytes(const WeightSource& source) {
  const auto [num_weights, num_bytes] = block_size_of(source.type);
  PAGED_CHECK(source.rows > 0 && source.cols > 0, "weights: a ", name_of(source.type),
              " matrix needs rows and columns, got ", source.rows, " x ", source.cols);
  PAGED_CHECK(source.cols % num_weights == 0, "weights: ", name_of(source.type), " rows come in groups of ",
              num_weights, " columns, got ", source.cols, " columns");
  const std::int64_t row_bytes = source.cols / num_weights * num_bytes;
  PAGED_CHECK(source.num_bytes / row_bytes == source.rows && source.num_bytes % row_bytes == 0, "weights: a ",
              source.rows, " x ", source.cols, " ", name_of(source.type), " matrix has ", row_bytes,
              " bytes a row, got ", source.num_bytes, " bytes in all");
  if (source.row_order != nullptr)
    for (std::int64_t i = 0; i < source.rows; ++i)
      PAGED_CHECK(source.row_order[i] >= 0 && source.row_order[i] < source.rows, "weights: row_order[", i,
                  "] = ", source.row_order[i], " is outside the ", source.rows, " rows");
  return row_bytes;
}

}  // namespace paged::cpu

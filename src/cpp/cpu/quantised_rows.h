// SPDX-License-Identifier: Apache-2.0
// Rows of x as products with quantised weights read them: codes of 16 bits, 32 of them (a group) with a scale, x = code
// * scale and |code| <= 32512. Groups are
//   fine    the scale is a power of two: a bfloat16 is exact unless it is 128 times smaller than the largest of its
//           group, any number is rounded to 2^-15 of the largest
//   coarse  codes are multiples of 256, 127 * 256 for the largest: products skip their low bytes. Where x has 16 bits,
//           groups whose largest is not far above what is usual in the row (isa/code_scales.h)
// Rounding by coarse groups is as large as what bfloat16 rounds off a model's activations. The same codes on every
// instruction set; how they lie is its own (isa/integer_dot.h).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/divide_up.h"
#include "cpu/float16.h"
#include "cpu/inline.h"

namespace paged::cpu {

inline constexpr int kCodeGroup = 32;
inline constexpr int kCodePadding = 64;  // between rows: rows as far apart as a power of two evict one another

struct CodeGroup {
  std::byte codes[2 * kCodeGroup];
  float scale;                   // NaN where x has a NaN or an infinity
  float scaled_sum;              // scale * the sum of the codes
  std::int32_t minus_sum;        // of the codes
  std::int32_t minus_first_sum;  // of the first half's, where some weights' groups are as small
  std::int32_t is_fine;
};

// A group of sixteen rows as AMX tiles read them: code = high + low, the first a multiple of 256.
struct alignas(64) CodeTile {
  BFloat16 high[16][kCodeGroup];
  BFloat16 low[16][kCodeGroup];
  float scales[16];
  float scaled_sums[16];
  std::int32_t is_fine;  // whether any row's group is
};

enum class CodeLayout { kRows, kTiles };

PAGED_INLINE constexpr std::int64_t quantised_row_bytes(std::int64_t cols, bool tiled) {
  const std::int64_t groups = cols / kCodeGroup;
  return groups * static_cast<std::int64_t>(tiled ? sizeof(CodeTile) / 16 : sizeof(CodeGroup)) +
         (tiled ? 0 : kCodePadding);
}

// Borrowed memory. Row 0 is row `first_row` of x.
struct QuantisedRows {
  std::byte* data;  // CodeGroup [cols / 32] in each row; tiles: CodeTile [rows / 16][cols / 32]
  std::int64_t first_row;
  std::int64_t cols;  // a multiple of 32
  CodeLayout layout;
  bool halves;  // whether minus_first_sum is wanted

  PAGED_INLINE CodeTile* tiles() const { return reinterpret_cast<CodeTile*>(data); }
  PAGED_INLINE std::int64_t tile_stride() const { return cols / kCodeGroup; }
  PAGED_INLINE std::int64_t row_stride() const { return quantised_row_bytes(cols, false); }
  PAGED_INLINE CodeGroup* row(std::int64_t row) const {
    return reinterpret_cast<CodeGroup*>(data + (row - first_row) * row_stride());
  }
};

// Rows of x that are quantised before their products begin, of `rows` in all: in even parts that stay in the threads'
// outer caches but are enough for the weights, read again for the next ones, to cost little.
inline constexpr std::int64_t kQuantisedBytesOfThread = 512 * 1024, kFewestQuantisedRows = 96, kRowsOfParts = 16;
constexpr std::int64_t quantised_rows_at_once(std::int64_t rows, std::int64_t cols, bool tiled, int num_threads) {
  const std::int64_t fit = num_threads * kQuantisedBytesOfThread / quantised_row_bytes(cols, tiled);
  const std::int64_t parts = divide_up(rows, std::max(kFewestQuantisedRows, fit / kRowsOfParts * kRowsOfParts));
  return divide_up(rows, kRowsOfParts * std::max<std::int64_t>(1, parts)) * kRowsOfParts;
}

}  // namespace paged::cpu

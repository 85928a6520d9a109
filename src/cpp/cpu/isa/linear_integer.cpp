// SPDX-License-Identifier: Apache-2.0
#include "cpu/isa/linear_integer.h"

#include "cpu/isa/integer_format.h"
#include "cpu/isa/integer_tiles.h"
#include "cpu/isa/rows.h"
#include "cpu/quantised_rows.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {
namespace {

constexpr int kAhead = 6144;  // bytes of a panel that are asked for before they are needed
constexpr int kBlockK = 256;  // k of one pass over many rows; a multiple of every block

// Some rows of x and where their sums go.
struct Rows {
  const std::byte* codes;
  std::int64_t code_stride;
  const CodeGroup* groups;
  std::int64_t group_stride;
  float* acc;
  int acc_stride;

  PAGED_INLINE Rows from(int row) const {
    return {codes + row * code_stride, code_stride, groups + row * group_stride, group_stride,
            acc + row * acc_stride,    acc_stride};
  }
};

// Of one row in the group of weights that begins with half `half` of a group of x.
template <int kGroup>
PAGED_INLINE std::int32_t code_sum(const CodeGroup& group, int half) {
  return kGroup == kCodeGroup ? group.sums[0] + group.sums[1] : group.sums[half];
}

// The group's sum into acc, as its scale and min have it.
template <bool kHasMin>
PAGED_INLINE F32 add_scaled(F32 acc, I32 sum, F32 scale, F32 min, const CodeGroup& group) {
  acc = acc + int_to_float(sum) * (scale * set1(group.scale));
  if constexpr (kHasMin) acc = acc + min * set1(group.scaled_sum);
  return acc;
}

// ---- few rows

template <typename F, int kRows, int kQuad>
PAGED_INLINE void add_quads(const std::byte* codes, const Rows& rows, std::int64_t k, FewRowsDot::Sums (&sums)[kRows]) {
  if constexpr (kQuad < F::kGroupQuads) {
    if constexpr (kQuad % F::kQuadsOfLine == 0) __builtin_prefetch(codes + kQuad / F::kQuadsOfLine * 64 + kAhead);
    const auto w = F::template operand<FewRowsDot, kQuad>(codes);
    for (int r = 0; r < kRows; ++r)
      FewRowsDot::add_products(sums[r], w, load_quad(rows.codes + r * rows.code_stride + 2 * k + kQuad * kQuadBytes));
    add_quads<F, kRows, kQuad + 1>(codes, rows, k, sums);
  }
}

// All of k by one panel.
template <QuantLayout kLayout, int kRows>
void multiply_direct(const Rows& rows, std::int64_t cols, const std::byte* block) {
  using F = Format<kLayout>;
  constexpr int kOffset = F::template kOffset<FewRowsDot>;
  F32 acc[kRows];
  for (int r = 0; r < kRows; ++r) acc[r] = zero();
  for (std::int64_t k = 0; k < cols; block += kLayout.block_bytes()) {
    for (int group = 0; group < kLayout.groups(); ++group, k += F::kGroup) {
      const CodeGroup* at = rows.groups + k / kCodeGroup;
      FewRowsDot::Sums sums[kRows];
      for (int r = 0; r < kRows; ++r) {
        const int sum = kOffset == 0 ? 0 : code_sum<F::kGroup>(at[r * rows.group_stride], group % 2);
        sums[r] = FewRowsDot::sums_from(-kOffset * sum);
      }
      add_quads<F, kRows, 0>(F::codes(block, group), rows, k, sums);
      const F32 scale = F::scale(block, group), min = F::min(block, group);
      for (int r = 0; r < kRows; ++r)
        acc[r] = add_scaled<kLayout.has_min>(acc[r], FewRowsDot::total(sums[r]), scale, min, at[r * rows.group_stride]);
    }
  }
  for (int r = 0; r < kRows; ++r) store(rows.acc + r * rows.acc_stride, acc[r]);
}

template <QuantLayout kLayout, int kRows>
void multiply_few(Rows rows, const LinearTile& tile) {
  if constexpr (kRows > 1) {
    if (tile.num_rows < kRows) return multiply_few<kLayout, kRows - 1>(rows, tile);
  }
  const PackedMatrix& matrix = *tile.weights;
  for (int p = 0; p < tile.num_panels; ++p, rows.acc += kPanelRows)
    multiply_direct<kLayout, kRows>(rows, matrix.cols, matrix.data + (tile.panel_begin + p) * matrix.panel_bytes);
}

// ---- many rows

// Lines of panels that are read next, asked for beside the groups of many rows: as many to a step as brings all of
// them.
struct NextLines {
  const std::byte* at[kIntegerPanels];
  std::int64_t a_step;  // bytes

  NextLines(std::int64_t bytes, int steps) : at{}, a_step((bytes / steps + 63) / 64 * 64) {}
  PAGED_INLINE void ask() {
    for (int p = 0; p < kIntegerPanels; ++p) {
      for (std::int64_t i = 0; i < a_step; i += 64) __builtin_prefetch(at[p] + i);
      at[p] += a_step;
    }
  }
};

// kBlockK of a panel: of sixteen rows two codes of 16 bits, as the words of x have them.
struct WidePanel {
  alignas(64) std::byte pairs[kBlockK / 2][64];
  alignas(64) float scales[kBlockK / 16 * kPanelRows];
  alignas(64) float mins[kBlockK / 16 * kPanelRows];
};
static_assert(kIntegerPanels * sizeof(WidePanel) <= kIntegerScratch);

template <typename F, int kQuad>
PAGED_INLINE void widen_quads(const std::byte* codes, std::byte (*to)[64]) {
  if constexpr (kQuad < F::kGroupQuads) {
    const auto wide = WideDot::less<F::kZero>(F::template operand<WideDot, kQuad>(codes));
    store_words(to[2 * kQuad], wide.even);
    store_words(to[2 * kQuad + 1], wide.odd);
    widen_quads<F, kQuad + 1>(codes, to);
  }
}

// `count` of k from the beginning of a block on.
template <QuantLayout kLayout>
void widen(const std::byte* block, int count, WidePanel& panel) {
  using F = Format<kLayout>;
  int at = 0;
  for (int k = 0; k < count; block += kLayout.block_bytes()) {
    for (int group = 0; group < kLayout.groups(); ++group, ++at, k += F::kGroup) {
      widen_quads<F, 0>(F::codes(block, group), panel.pairs + k / 2);
      store(panel.scales + at * kPanelRows, F::scale(block, group));
      if constexpr (kLayout.has_min) store(panel.mins + at * kPanelRows, F::min(block, group));
    }
  }
}

// The products of kPairs pairs of k.
template <int kPairs, int kRows>
PAGED_INLINE void add_group(const std::byte* pairs, const std::byte* codes, std::int64_t code_stride,
                            I32 (&sums)[kRows][kIntegerPanels]) {
#pragma GCC unroll 16
  for (int i = 0; i < kPairs; ++i) {
    I32 w[kIntegerPanels];
    for (int p = 0; p < kIntegerPanels; ++p) w[p] = load_words(pairs + p * sizeof(WidePanel) + i * 64);
    for (int r = 0; r < kRows; ++r) {
      const I32 x = load_word(codes + r * code_stride + i * 4);
      for (int p = 0; p < kIntegerPanels; ++p) sums[r][p] = add_pairs(sums[r][p], w[p], x);
    }
  }
}

// The results stay in registers beside the sums of a group.
template <QuantLayout kLayout, int kRows>
void multiply_wide(const WidePanel* panels, Rows rows, int count, NextLines& next) {
  constexpr int kGroup = kLayout.group_k;
  F32 acc[kRows][kIntegerPanels];
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kIntegerPanels; ++p) acc[r][p] = load(rows.acc + r * rows.acc_stride + p * kPanelRows);
  for (int k = 0, at = 0; k < count; k += kGroup, ++at) {
    const CodeGroup* group = rows.groups + k / kCodeGroup;
    I32 sums[kRows][kIntegerPanels];
    for (int r = 0; r < kRows; ++r)
      for (int p = 0; p < kIntegerPanels; ++p) sums[r][p] = set1_word(0);
    next.ask();
    add_group<kGroup / 2>(panels->pairs[k / 2], rows.codes + 2 * k, rows.code_stride, sums);
    for (int p = 0; p < kIntegerPanels; ++p) {
      const F32 scale = load(panels[p].scales + at * kPanelRows),
                min = kLayout.has_min ? load(panels[p].mins + at * kPanelRows) : zero();
      for (int r = 0; r < kRows; ++r)
        acc[r][p] = add_scaled<kLayout.has_min>(acc[r][p], sums[r][p], scale, min, group[r * rows.group_stride]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kIntegerPanels; ++p) store(rows.acc + r * rows.acc_stride + p * kPanelRows, acc[r][p]);
}

template <QuantLayout kLayout, int kRows>
PAGED_INLINE void multiply_tile(const WidePanel* panels, const Rows& rows, int count, int num_rows, NextLines& next) {
  if (num_rows == kRows)
    multiply_wide<kLayout, kRows>(panels, rows, count, next);
  else if constexpr (kRows > 1)
    multiply_tile<kLayout, kRows - 1>(panels, rows, count, num_rows, next);
}

// Register tiles as even as they can be. Behind an odd number of panels the last one is multiplied twice: into the room
// that acc has.
template <QuantLayout kLayout>
void multiply_many(const Rows& all, const LinearTile& tile, WidePanel* panels) {
  const PackedMatrix& matrix = *tile.weights;
  const int tile_rows = even_tile(tile.num_rows, kIntegerRows), tiles = (tile.num_rows + tile_rows - 1) / tile_rows;
  const auto weights_at = [&](int panel, std::int64_t k) {
    const int last = panel < tile.num_panels ? panel : tile.num_panels - 1;
    return matrix.data + (tile.panel_begin + last) * matrix.panel_bytes + k / kLayout.block_k * kLayout.block_bytes();
  };
  const auto weights_after = [&](int panel) {
    return panel < tile.num_panels ? weights_at(panel, 0) : tile.next + (panel - tile.num_panels) * matrix.panel_bytes;
  };
  for (int panel = 0; panel < tile.num_panels; panel += kIntegerPanels) {
    for (std::int64_t k = 0; k < matrix.cols; k += kBlockK) {
      const int count = static_cast<int>(matrix.cols - k < kBlockK ? matrix.cols - k : kBlockK);
      const bool is_last = k + kBlockK >= matrix.cols;
      const int num_bytes = tile.is_new ? kBlockK / kLayout.block_k * kLayout.block_bytes() : 0;
      NextLines next(num_bytes, tiles * count / kLayout.group_k);
      for (int p = 0; p < kIntegerPanels; ++p) {
        widen<kLayout>(weights_at(panel + p, k), count, panels[p]);
        next.at[p] = is_last ? weights_after(panel + kIntegerPanels + p) : weights_at(panel + p, k + kBlockK);
      }
      for (int row = 0; row < tile.num_rows; row += tile_rows) {
        Rows rows = all.from(row);
        rows.codes += 2 * k, rows.groups += k / kCodeGroup, rows.acc += panel * kPanelRows;
        const int left = tile.num_rows - row;
        multiply_tile<kLayout, kIntegerRows>(panels, rows, count, left < tile_rows ? left : tile_rows, next);
      }
    }
  }
}

template <QuantLayout kLayout>
void multiply(const Rows& rows, const LinearTile& tile, std::byte* scratch) {
  if (tile.codes->layout == CodeLayout::kFewRows) return multiply_few<kLayout, kFewCodeRows>(rows, tile);
  __builtin_memset(rows.acc, 0,
                   static_cast<unsigned long>(tile.num_rows) * static_cast<unsigned>(rows.acc_stride) * sizeof(float));
  multiply_many<kLayout>(rows, tile, reinterpret_cast<WidePanel*>(scratch));
}

// Calls body(Format<layout>{}) with the layout of quantised weights.
template <typename Body>
PAGED_INLINE void with_layout(const PackedMatrix& weights, Body body) {
  switch (weights.format) {
    case PackedFormat::kQ8: return body(Format<kQ8Layout>{});
    case PackedFormat::kQ8Min: return body(Format<kQ8MinLayout>{});
    case PackedFormat::kQ4: return body(Format<kQ4Layout>{});
    case PackedFormat::kQ4Min: return body(Format<kQ4MinLayout>{});
    case PackedFormat::kQ4K: return body(Format<kQ4KLayout>{});
    case PackedFormat::kQ5K: return body(Format<kQ5KLayout>{});
    case PackedFormat::kQ6K: return body(Format<kQ6KLayout>{});
    default: return;
  }
}

}  // namespace

void multiply_integers(const LinearTile& tile, float* acc, int acc_stride, std::byte* scratch) {
  const QuantisedRows& x = *tile.codes;
  const std::int64_t row = tile.row_begin - x.first_row;
  const Rows rows{x.codes + row * x.code_stride(),
                  x.code_stride(),
                  x.groups + row * x.group_stride(),
                  x.group_stride(),
                  acc,
                  acc_stride};
  with_layout(*tile.weights, [&](auto format) { multiply<decltype(format)::kLayout>(rows, tile, scratch); });
}

void linear_code_tiles(const LinearTile& tile) {
  if constexpr (kHasTiles)
    with_layout(*tile.weights, [&](auto format) { multiply_code_tiles<decltype(format)>(tile); });
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

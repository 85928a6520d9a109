// SPDX-License-Identifier: Apache-2.0
#include "cpu/isa/linear_integer.h"

#include "cpu/isa/code_scales.h"
#include "cpu/isa/integer_format.h"
#include "cpu/isa/integer_tiles.h"
#include "cpu/isa/rows.h"
#include "cpu/quantised_rows.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {
namespace {

constexpr int kWideK = 256;   // k of one pass over widened codes, at most; a multiple of every block
constexpr int kCodesK = 768;  // over codes as they are
constexpr int kAhead = 6144;  // bytes of panels that rows of one register tile ask for before they are needed

// Some rows of x from some k on, and where their sums go.
struct Rows {
  const std::byte* groups;    // CodeGroup, of the first row
  std::int64_t group_stride;  // bytes from a row to the next
  float* acc;
  int acc_stride;

  PAGED_INLINE Rows from(int row, int k, int panel) const {
    return {groups + row * group_stride + k / kCodeGroup * static_cast<std::int64_t>(sizeof(CodeGroup)), group_stride,
            acc + row * acc_stride + panel * kPanelRows, acc_stride};
  }
};

// Walks along the groups of weights and the codes of x that they meet.
template <int kGroup>
struct GroupsOfX {
  const std::byte* at;
  std::int64_t stride;
  int half = 0;

  PAGED_INLINE const CodeGroup& of(int row) const { return *reinterpret_cast<const CodeGroup*>(at + row * stride); }
  PAGED_INLINE const std::byte* codes() const { return at + kGroup * 2 * half; }
  PAGED_INLINE void advance() {
    if constexpr (kGroup < kCodeGroup) half = 1 - half;
    if (half == 0) at += sizeof(CodeGroup);
  }
};

// Of one row in the group of weights that begins with half `half` of a group of x, negated.
template <int kGroup>
PAGED_INLINE std::int32_t minus_sum(const CodeGroup& group, int half) {
  if constexpr (kGroup == kCodeGroup) return group.minus_sum;
  return half == 0 ? group.minus_first_sum : group.minus_sum - group.minus_first_sum;
}

constexpr int log2_of(int power) { return power == 1 ? 0 : 1 + log2_of(power / 2); }

// The group's sum into acc, as its scale and min have it.
template <bool kHasMin>
PAGED_INLINE F32 add_scaled(F32 acc, I32 sum, F32 scale, F32 min, const CodeGroup& group) {
  acc = acc + int_to_float(sum) * (scale * set1(group.scale));
  if constexpr (kHasMin) acc = acc + min * set1(group.scaled_sum);
  return acc;
}

// The block that comes next of each panel, asked for beside the groups of this one: as many lines to a group as bring
// all of it.
template <int kPanels>
struct LinesAhead {
  const std::byte* at[kPanels];
  std::int64_t a_group;  // bytes of a panel
  bool nearest;

  LinesAhead(std::int64_t bytes, int groups, bool asks_nearest)
      : at{}, a_group((bytes / groups + 63) / 64 * 64), nearest(asks_nearest) {}
  PAGED_INLINE void ask() {
    for (int p = 0; p < kPanels; ++p) {
      for (std::int64_t i = 0; i < a_group; i += 64) ask_for_weights(at[p] + i, nearest);
      at[p] += a_group;
    }
  }
};

// ---- codes in registers

// Pass kPass of the products of a group.
template <typename F, int kPass, int kRows, int kPanels, int kQuad = 0>
PAGED_INLINE void add_quads(const std::byte* const (&codes)[kPanels], const std::byte* x, std::int64_t stride,
                            I32 (&sums)[kRows][kPanels]) {
  if constexpr (kQuad < F::kGroupQuads) {
    typename CodesDot::Operand w[kPanels];
    for (int p = 0; p < kPanels; ++p) w[p] = F::template operand<CodesDot, kQuad>(codes[p]);
    for (int r = 0; r < kRows; ++r) {
      const std::byte* quad = x + r * stride + kQuad * kQuadBytes;
      for (int p = 0; p < kPanels; ++p) sums[r][p] = CodesDot::template add_products<kPass>(sums[r][p], w[p], quad);
    }
    add_quads<F, kPass, kRows, kPanels, kQuad + 1>(codes, x, stride, sums);
  }
}

// Weights' codes are kZero too large, so a row's sum of products begins with minus kZero times the sum of x's codes:
// here divided by 2^kDown and rounded down.
template <typename F, int kDown>
PAGED_INLINE I32 start_of(const GroupsOfX<F::kGroup>& x, int row) {
  constexpr int kUp = log2_of(F::kZero) - kDown;
  const I32 minus = set1_word(static_cast<std::uint32_t>(minus_sum<F::kGroup>(x.of(row), x.half)));
  if constexpr (kUp < 0) return shift_right_signed<-kUp>(minus);
  return shift_left<(kUp > 0 ? kUp : 0)>(minus);
}

// The products of a group. Where no row's is fine, in units of kCoarseUnit: false.
template <typename F, int kRows, int kPanels>
PAGED_INLINE bool sum_up(const std::byte* const (&codes)[kPanels], const GroupsOfX<F::kGroup>& x,
                         I32 (&sums)[kRows][kPanels]) {
  constexpr int kDown = kCoarseBits * (CodesDot::kPasses - 1);
  for (int r = 0; r < kRows; ++r) {
    I32 start = set1_word(0);
    if constexpr (F::kZero > 0) start = start_of<F, kDown>(x, r);
    for (int p = 0; p < kPanels; ++p) sums[r][p] = start;
  }
  add_quads<F, 0>(codes, x.codes(), x.stride, sums);
  if constexpr (CodesDot::kPasses == 1) return true;
  std::int32_t fine = 0;
  for (int r = 0; r < kRows; ++r) fine |= x.of(r).is_fine;
  if (fine == 0) return false;
  for (int r = 0; r < kRows; ++r) {
    I32 rest = set1_word(0);  // that rounding down has left out
    if constexpr (F::kZero > 0) rest = start_of<F, 0>(x, r) & set1_word(0xff);
    for (int p = 0; p < kPanels; ++p) sums[r][p] = shift_left<kCoarseBits>(sums[r][p]) + rest;
  }
  add_quads<F, 1>(codes, x.codes(), x.stride, sums);
  return true;
}

// `count` of k of panels whose blocks begin at `blocks`.
template <QuantLayout kLayout, int kRows, int kPanels>
void multiply_codes(const std::byte* const (&blocks)[kPanels], const Rows& rows, int count,
                    LinesAhead<kPanels>& ahead) {
  using F = Format<kLayout>;
  F32 acc[kRows][kPanels];
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPanels; ++p) acc[r][p] = load(rows.acc + r * rows.acc_stride + p * kPanelRows);
  GroupsOfX<F::kGroup> x{rows.groups, rows.group_stride};
  std::int64_t block = 0;
  for (int k = 0; k < count; block += kLayout.block_bytes()) {
    for (int group = 0; group < kLayout.groups(); ++group, k += F::kGroup) {
      const std::byte* codes[kPanels];
      for (int p = 0; p < kPanels; ++p) codes[p] = F::codes(blocks[p] + block, group);
      ahead.ask();
      I32 sums[kRows][kPanels];
      const F32 unit = set1(sum_up<F>(codes, x, sums) ? 1.0f : kCoarseUnit);
      for (int p = 0; p < kPanels; ++p) {
        const F32 scale = F::scale(blocks[p] + block, group) * unit, min = F::min(blocks[p] + block, group);
        for (int r = 0; r < kRows; ++r)
          acc[r][p] = add_scaled<kLayout.has_min>(acc[r][p], sums[r][p], scale, min, x.of(r));
      }
      x.advance();
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPanels; ++p) store(rows.acc + r * rows.acc_stride + p * kPanelRows, acc[r][p]);
}

// What meets rows: the panels as they are.
template <QuantLayout kLayout, int kMostRows, int kNumPanels>
struct Codes {
  static constexpr int kRows = kMostRows;
  static constexpr int kPanels = kNumPanels;

  const std::byte* blocks[kPanels];

  explicit Codes(std::byte*) {}
  // Few rows wait for memory, which likes to be asked for neither too little nor too much at once.
  static constexpr int most_k(int tiles) {
    return tiles > 1 ? kCodesK : kAhead / kPanels * 8 / (kPanelRows * kLayout.bits);
  }
  PAGED_INLINE void set(int p, const std::byte* block, int) { blocks[p] = block; }
  template <int kNumRows>
  PAGED_INLINE void multiply(const Rows& rows, int count, LinesAhead<kPanels>& ahead) const {
    multiply_codes<kLayout, kNumRows, kPanels>(blocks, rows, count, ahead);
  }
};

// ---- codes widened before

// kWideK of a panel: of sixteen rows two codes of 16 bits, as the words of x have them.
struct WidePanel {
  alignas(64) std::byte pairs[kWideK / 2][64];
  alignas(64) float scales[kWideK / 16 * kPanelRows];
  alignas(64) float mins[kWideK / 16 * kPanelRows];
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
void multiply_wide(const WidePanel* panels, const Rows& rows, int count, LinesAhead<kIntegerPanels>& ahead) {
  constexpr int kGroup = kLayout.group_k;
  F32 acc[kRows][kIntegerPanels];
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kIntegerPanels; ++p) acc[r][p] = load(rows.acc + r * rows.acc_stride + p * kPanelRows);
  GroupsOfX<kGroup> x{rows.groups, rows.group_stride};
  for (int k = 0, at = 0; k < count; k += kGroup, ++at, x.advance()) {
    ahead.ask();
    I32 sums[kRows][kIntegerPanels];
    for (int r = 0; r < kRows; ++r)
      for (int p = 0; p < kIntegerPanels; ++p) sums[r][p] = set1_word(0);
    add_group<kGroup / 2>(panels->pairs[k / 2], x.codes(), x.stride, sums);
    for (int p = 0; p < kIntegerPanels; ++p) {
      const F32 scale = load(panels[p].scales + at * kPanelRows),
                min = kLayout.has_min ? load(panels[p].mins + at * kPanelRows) : zero();
      for (int r = 0; r < kRows; ++r)
        acc[r][p] = add_scaled<kLayout.has_min>(acc[r][p], sums[r][p], scale, min, x.of(r));
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kIntegerPanels; ++p) store(rows.acc + r * rows.acc_stride + p * kPanelRows, acc[r][p]);
}

// What meets rows: codes in scratch.
template <QuantLayout kLayout>
struct Wide {
  static constexpr int kRows = kIntegerRows;
  static constexpr int kPanels = kIntegerPanels;

  WidePanel* panels;

  static constexpr int most_k(int) { return kWideK; }
  explicit Wide(std::byte* scratch) : panels(reinterpret_cast<WidePanel*>(scratch)) {}
  PAGED_INLINE void set(int p, const std::byte* block, int count) { widen<kLayout>(block, count, panels[p]); }
  template <int kNumRows>
  PAGED_INLINE void multiply(const Rows& rows, int count, LinesAhead<kPanels>& ahead) const {
    multiply_wide<kLayout, kNumRows>(panels, rows, count, ahead);
  }
};

// ---- the tile

template <typename Weights, int kRows>
PAGED_INLINE void multiply_tile(const Weights& weights, const Rows& rows, int count, int num_rows,
                                LinesAhead<Weights::kPanels>& ahead) {
  if (num_rows == kRows)
    weights.template multiply<kRows>(rows, count, ahead);
  else if constexpr (kRows > 1)
    multiply_tile<Weights, kRows - 1>(weights, rows, count, num_rows, ahead);
}

// Where the panels of a tile lie, cut into blocks of k as even as can be, and those that the thread reads next.
struct Blocks {
  const LinearTile& tile;
  int k;  // of a block
  int bytes;
  int count;  // of a panel

  Blocks(const LinearTile& of, const QuantLayout& layout, int most_k) : tile(of) {
    const int cols = static_cast<int>(of.weights->cols), units = (cols + layout.block_k - 1) / layout.block_k;
    const int passes = (cols + most_k - 1) / most_k, block = (units + passes - 1) / passes;
    k = block * layout.block_k, bytes = block * layout.block_bytes(), count = (units + block - 1) / block;
  }
  // Beyond the last panel: the next ones.
  PAGED_INLINE const std::byte* at(int panel, int block) const {
    const PackedMatrix& matrix = *tile.weights;
    const std::int64_t offset = static_cast<std::int64_t>(block) * bytes;
    if (panel < tile.num_panels) return matrix.data + (tile.panel_begin + panel) * matrix.panel_bytes + offset;
    return tile.next + (panel - tile.num_panels) * matrix.panel_bytes + offset;
  }
};

// Register tiles as even as they can be. Behind an odd number of panels the last one is multiplied twice: into the room
// that acc has.
template <typename Weights>
void multiply(const Rows& all, const LinearTile& tile, const QuantLayout& layout, std::byte* scratch) {
  constexpr int kPanels = Weights::kPanels;
  const int tile_rows = even_tile(tile.num_rows, Weights::kRows), tiles = (tile.num_rows + tile_rows - 1) / tile_rows;
  const Blocks blocks(tile, layout, Weights::most_k(tiles));
  Weights weights(scratch);
  for (int panel = 0; panel < tile.num_panels; panel += kPanels) {
    for (int block = 0; block < blocks.count; ++block) {
      const int k = block * blocks.k, count = smaller(blocks.k, static_cast<int>(tile.weights->cols) - k);
      LinesAhead<kPanels> ahead(tile.is_new ? blocks.bytes : 0, tiles * count / layout.group_k, tile.asks_nearest);
      const int after = block + 1 < blocks.count ? panel : panel + kPanels;
      for (int p = 0; p < kPanels; ++p) {
        weights.set(p, blocks.at(smaller(panel + p, tile.num_panels - 1), block), count);
        ahead.at[p] = blocks.at(after + p, (block + 1) % blocks.count);
      }
      const std::byte* asked = ahead.at[0] + blocks.bytes;
      for (int row = 0; row < tile.num_rows; row += tile_rows) {
        if (ahead.at[0] >= asked) ahead.a_group = 0;
        multiply_tile<Weights, Weights::kRows>(weights, all.from(row, k, panel), count,
                                               smaller(tile_rows, tile.num_rows - row), ahead);
      }
    }
  }
}

template <QuantLayout kLayout>
void multiply_format(const Rows& rows, const LinearTile& tile, std::byte* scratch) {
  __builtin_memset(rows.acc, 0,
                   static_cast<unsigned long>(tile.num_rows) * static_cast<unsigned>(rows.acc_stride) * sizeof(float));
  constexpr int kStreamRows = kLayout.bits == 8 ? 3 : 1;  // that wait for memory, which likes one stream best
  if constexpr (kCodesPanels > 1)
    if (tile.num_rows <= kStreamRows) return multiply<Codes<kLayout, kStreamRows, 1>>(rows, tile, kLayout, scratch);
  if (kCodesMeetAll || tile.num_rows <= kCodesRows)
    return multiply<Codes<kLayout, kCodesRows, kCodesPanels>>(rows, tile, kLayout, scratch);
  if constexpr (!kCodesMeetAll) multiply<Wide<kLayout>>(rows, tile, kLayout, scratch);
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
  const Rows rows{reinterpret_cast<const std::byte*>(x.row(tile.row_begin)), x.row_stride(), acc, acc_stride};
  with_layout(*tile.weights, [&](auto format) { multiply_format<decltype(format)::kLayout>(rows, tile, scratch); });
}

void linear_code_tiles(const LinearTile& tile) {
  if constexpr (kHasTiles)
    with_layout(*tile.weights, [&](auto format) { multiply_code_tiles<decltype(format)>(tile); });
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

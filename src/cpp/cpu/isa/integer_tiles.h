// SPDX-License-Identifier: Apache-2.0
// Products of many rows with quantised weights by AMX tiles of bfloat16, to the bit those of linear_integer.cpp.
// Weights' codes are bfloat16 as they are. A code of x is high + low, two bfloat16, the first a multiple of 256: so a
// tile's sums are exact, in any order, as long as they fit 24 bits. With 4 bits (or 5 and a sign, in groups of 16) both
// halves of x do; with 8, each by itself, and adding the two rounds as a conversion of their exact sum would. Where no
// row's group is fine, low halves are zeros and left out.
#pragma once

#include "cpu/isa/finish_rows.h"
#include "cpu/isa/integer_format.h"
#include "cpu/isa/tiles.h"
#include "cpu/kernel_table.h"
#include "cpu/quantised_rows.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

// A pass is so many k (a multiple of every block) of so many panels by all rows of the tile, 16 after 16: what the
// nearest cache holds beside sixteen rows of x.
inline constexpr int kTiledBlockK = 256;
inline constexpr int kTiledPanels = 2;

// kTiledBlockK of a panel.
struct TiledPanel {
  alignas(64) std::byte codes[kTiledBlockK / 2][kTileBytes];  // pairs of k of sixteen rows
  alignas(64) float scales[kTiledBlockK / 16][kPanelRows];
  alignas(64) float mins[kTiledBlockK / 16][kPanelRows];
};

// A tile's sums, kept until the stores have left: loads behind them would wait.
struct alignas(64) StoredSums {
  float all[16 * kPanelRows];  // or what x's high halves give
  float low[16 * kPanelRows];
  bool has_low;
};
inline constexpr int kStoredSums = 4;

#if defined(__AMX_BF16__) && defined(__AMX_TILE__)

// A small integer for each word, as bfloat16 in its upper half.
PAGED_INLINE __m512i upper_bf16(__m512i integers) { return _mm512_castps_si512(_mm512_cvtepi32_ps(integers)); }
PAGED_INLINE void store_pairs(std::byte* to, __m512i even, __m512i odd) {
  _mm512_store_si512(to, _mm512_or_si512(_mm512_srli_epi32(even, 16), odd));
}
// Four k of sixteen rows, less the codes' zero -> two rows of pairs.
template <int kZero>
PAGED_INLINE void widen_bytes(const std::byte* words, std::byte* to) {
  const __m512i w = _mm512_loadu_si512(words);
  const auto byte = [&](int bits) {
    const __m512i code = _mm512_and_si512(_mm512_srli_epi32(w, bits), _mm512_set1_epi32(0xff));
    return upper_bf16(_mm512_sub_epi32(code, _mm512_set1_epi32(kZero)));
  };
  store_pairs(to, byte(0), byte(8));
  store_pairs(to + kTileBytes, byte(16), byte(24));
}
// Eight k of sixteen rows -> four rows of pairs; `numbers` are what codes stand for, as bfloat16 in the upper half.
PAGED_INLINE void widen_nibbles(const std::byte* words, __m512i numbers, std::byte* to) {
  const __m512i w = _mm512_loadu_si512(words), lower = _mm512_srli_epi32(numbers, 16);
  const auto store_pair = [&](int row, __m512i even, __m512i odd) {
    _mm512_store_si512(to + row * kTileBytes,
                       _mm512_or_si512(_mm512_permutexvar_epi32(even, lower), _mm512_permutexvar_epi32(odd, numbers)));
  };
  store_pair(0, w, _mm512_srli_epi32(w, 8));
  store_pair(1, _mm512_srli_epi32(w, 16), _mm512_srli_epi32(w, 24));
  store_pair(2, _mm512_srli_epi32(w, 4), _mm512_srli_epi32(w, 12));
  store_pair(3, _mm512_srli_epi32(w, 20), _mm512_srli_epi32(w, 28));
}
template <int kZero>
PAGED_INLINE __m512i numbers_of_nibbles() {
  return upper_bf16(_mm512_sub_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                     _mm512_set1_epi32(kZero)));
}

#else

// Never called.
template <int kZero>
void widen_bytes(const std::byte* words, std::byte* to);
void widen_nibbles(const std::byte* words, int numbers, std::byte* to);
template <int kZero>
int numbers_of_nibbles();

#endif

struct CodeTileScratch {
  StoredSums stored[kStoredSums];
  TiledPanel panels[kTiledPanels];
  alignas(64) float acc[kMaxCodeTile.rows][kTiledPanels * kPanelRows];
};
static_assert(sizeof(CodeTileScratch) <= 256 * 1024);

template <QuantLayout kTheLayout>
struct TiledFormat : Format<kTheLayout> {
  static constexpr QuantLayout kLayout = kTheLayout;
  static constexpr bool kHalvesApart = kLayout.bits == 8 && kLayout.group_k == kCodeGroup;  // each half of x its sum
  static constexpr int kPairs = kLayout.group_k / 2;

  // The codes of one group as kPairs rows of pairs.
  PAGED_INLINE static void widen_group(const std::byte* codes, std::byte* to) {
    if constexpr (kLayout.bits == 8) {
      for (int quad = 0; quad < kPairs / 2; ++quad)
        widen_bytes<kLayout.zero>(codes + quad * 64, to + quad * 2 * kTileBytes);
    } else {
      const auto numbers = numbers_of_nibbles<kLayout.zero>();
      for (int line = 0; line < kPairs / 4; ++line)
        widen_nibbles(codes + line * 64, numbers, to + line * 4 * kTileBytes);
    }
  }
  // `count` of k from the beginning of a block on.
  static void widen(const std::byte* block, int count, TiledPanel& panel) {
    for (int k = 0, at = 0; k < count; block += kLayout.block_bytes()) {
      for (int group = 0; group < kLayout.groups(); ++group, ++at, k += kLayout.group_k) {
        widen_group(Format<kLayout>::codes(block, group), panel.codes[k / 2]);
        store(panel.scales[at], Format<kLayout>::scale(block, group));
        if constexpr (kLayout.has_min) store(panel.mins[at], Format<kLayout>::min(block, group));
      }
    }
  }
};

template <typename F>
PAGED_INLINE TileShapes code_tile_shapes() {
  TileShapes shapes;
  for (int tile = 0; tile < 6; ++tile) shapes.set(tile, 16);
  shapes.set(6, F::kPairs);
  shapes.set(7, F::kPairs);
  shapes.row_bytes[4] = shapes.row_bytes[5] = F::kPairs * 4;
  return shapes;
}

// One pass: every sixteen rows of x by every panel by every group. Sums of a group pass from tiles through memory into
// sixteen vectors, two groups after their products began, across all bounds: so tiles, stores and additions never wait
// for each other.
template <typename F>
struct CodeTilePass {
  // Where a stage stands.
  struct Cursor {
    int row = 0, panel = 0, group = 0;

    PAGED_INLINE void advance(int panels, int groups) {
      if (++group < groups) return;
      group = 0;
      if (++panel < panels) return;
      panel = 0;
      row += 16;
    }
  };

  const CodeTile* x;        // of the first row and k of the pass
  std::int64_t row_stride;  // between sixteen rows
  CodeTileScratch& scratch;
  int num_panels;
  int num_groups;
  bool onto;  // what the passes before have summed up
  Cursor product, sum;

  PAGED_INLINE const CodeTile& tile_of(const Cursor& at) const {
    return x[at.row / 16 * row_stride + at.group * F::kGroup / kCodeGroup];
  }

  template <int kSlot>
  PAGED_INLINE void multiply(int step) {
    constexpr int kAll = 2 * kSlot, kLow = F::kHalvesApart ? kAll + 1 : kAll, kB = 6 + kSlot;
    const CodeTile& a = tile_of(product);
    const int offset = product.group * F::kGroup % kCodeGroup;
    const bool has_low = scratch.stored[step % kStoredSums].has_low = a.is_fine != 0;
    clear_tile<kAll>();
    load_tile<kB>(scratch.panels[product.panel].codes[product.group * F::kPairs], kTileBytes);
    load_tile<4>(&a.high[0][offset], kTileBytes);
    multiply_pairs_onto<kAll, 4, kB>();
    if (has_low) {
      if constexpr (F::kHalvesApart) clear_tile<kLow>();
      load_tile<5>(&a.low[0][offset], kTileBytes);
      multiply_pairs_onto<kLow, 5, kB>();
    }
    product.advance(num_panels, num_groups);
  }
  template <int kSlot>
  PAGED_INLINE void keep(int step) {
    StoredSums& to = scratch.stored[step % kStoredSums];
    store_tile<2 * kSlot>(to.all, kTileBytes);
    if constexpr (F::kHalvesApart)
      if (to.has_low) store_tile<2 * kSlot + 1>(to.low, kTileBytes);
  }
  PAGED_INLINE void add(int step, F32 (&acc)[16]) {
    constexpr int kStride = kTiledPanels * kPanelRows;
    const StoredSums& from = scratch.stored[step % kStoredSums];
    const TiledPanel& panel = scratch.panels[sum.panel];
    const CodeTile& codes = tile_of(sum);
    float* out = scratch.acc[sum.row] + sum.panel * kPanelRows;
    if (sum.group == 0) {
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) acc[r] = onto ? load(out + r * kStride) : zero();
    }
    const F32 scale = load(panel.scales[sum.group]);
    const auto add_row = [&](int r, F32 all) { acc[r] = acc[r] + all * (scale * set1(codes.scales[r])); };
    if (F::kHalvesApart && from.has_low) {
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) add_row(r, load(from.all + r * kPanelRows) + load(from.low + r * kPanelRows));
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) add_row(r, load(from.all + r * kPanelRows));
    }
    if constexpr (F::kLayout.has_min) {
      const F32 min = load(panel.mins[sum.group]);
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) acc[r] = acc[r] + min * set1(codes.scaled_sums[r]);
    }
    if (sum.group == num_groups - 1) {
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) store(out + r * kStride, acc[r]);
    }
    sum.advance(num_panels, num_groups);
  }
  template <int kSlot>
  PAGED_INLINE void step(int i, int count, F32 (&acc)[16]) {
    if (i < count) multiply<kSlot>(i);
    if (i >= 1 && i <= count) keep<1 - kSlot>(i - 1);
    if (i >= 2 && i <= count + 1) add(i - 2, acc);
  }
  PAGED_INLINE void run(int num_rows) {
    F32 acc[16];
    const int count = (num_rows + 15) / 16 * num_panels * num_groups;
    for (int i = 0; i < count + 2; i += 2) {
      step<0>(i, count, acc);
      step<1>(i + 1, count, acc);
    }
  }
};

// All k of the tile's panels, at most kTiledPanels.
template <typename F>
void multiply_panel_tiles(const LinearTile& tile, CodeTileScratch& scratch) {
  const PackedMatrix& matrix = *tile.weights;
  const std::int64_t groups = matrix.cols / kCodeGroup;
  const CodeTile* x = tile.codes->tiles() + (tile.row_begin - tile.codes->first_row) / 16 * groups;
  for (std::int64_t k = 0; k < matrix.cols; k += kTiledBlockK) {
    const int count = static_cast<int>(matrix.cols - k < kTiledBlockK ? matrix.cols - k : kTiledBlockK);
    for (int p = 0; p < tile.num_panels; ++p)
      F::widen(
          matrix.data + (tile.panel_begin + p) * matrix.panel_bytes + k / F::kLayout.block_k * F::kLayout.block_bytes(),
          count, scratch.panels[p]);
    CodeTilePass<F>{x + k / kCodeGroup, groups, scratch, tile.num_panels, count / F::kGroup, k > 0, {}, {}}.run(
        tile.num_rows);
  }
}

template <typename PlainFormat>
void multiply_code_tiles(LinearTile tile) {
  using F = TiledFormat<PlainFormat::kLayout>;
  auto& scratch = *reinterpret_cast<CodeTileScratch*>(tile.scratch);
  const std::int64_t end = tile.panel_begin + tile.num_panels;
  begin_tiles(code_tile_shapes<F>());
  for (; tile.panel_begin < end; tile.panel_begin += kTiledPanels) {
    tile.num_panels = end - tile.panel_begin < kTiledPanels ? static_cast<int>(end - tile.panel_begin) : kTiledPanels;
    multiply_panel_tiles<F>(tile, scratch);
    with_type(tile.out.dtype,
              [&](auto tag) { finish_rows<decltype(tag)>(tile, scratch.acc[0], kTiledPanels * kPanelRows); });
  }
  end_tiles();
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

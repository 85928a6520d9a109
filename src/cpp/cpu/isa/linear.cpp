// SPDX-License-Identifier: Apache-2.0
// x @ w.T for one tile of rows and panels. Every output is a sum of chains, each of the fused multiply-adds of kChain
// consecutive k in ascending order, whatever the number of rows, the register tile or the thread: a row's result does
// not depend on its batch. (A single chain over all k would round several times worse.) Paths, the first two of the
// same chains:
//   few rows        weights are decoded in registers and used at once (decode streams the weights, memory bound)
//   many rows       one or two panels are decoded into scratch, 16 kB at a time, and multiplied by all rows of the tile
//   quantised       in integers (linear_integer.h)
//   bf16 x bf16     where the machine has AMX, by its tiles (linear_tiles.h); else where it has dpbf16, by that
//                   (linear_pairs.h); either for every number of rows
#include "cpu/isa/finish_rows.h"
#include "cpu/isa/kernels.h"
#include "cpu/isa/linear_formats.h"
#include "cpu/isa/linear_integer.h"
#include "cpu/isa/linear_pairs.h"
#include "cpu/isa/linear_tiles.h"
#include "cpu/isa/rows.h"
#include "cpu/quantised_rows.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {
namespace {

constexpr int kFewRows = 8;
constexpr int kChain = 32;                  // k of one chain
constexpr int kBlockK = 256 / kTilePanels;  // k of one pass over many rows: half of the nearest cache holds the weights
constexpr int kLongBlockK = 2048;           // k of one pass over up to four rows, half of it over more
constexpr int kAhead = 2048;                // bytes of a panel that few rows ask for before they are needed
static_assert(kBlockK % kChain == 0 && kLongBlockK % kChain == 0);
constexpr int kAccStride = kMaxLinearTile.panels * kPanelRows;

// Of few rows. A line more from row to row, so that not all are in the same set of the nearest cache.
constexpr int few_block(int num_rows) { return num_rows <= 4 ? kLongBlockK : kLongBlockK / 2; }
constexpr int few_stride(int num_rows) { return few_block(num_rows) + 16; }

// Scratch of a tile. x is filled up with zeros to a multiple of 16 along k.
struct Scratch {
  float acc[kMaxLinearTile.rows * kAccStride];
  alignas(64) float x[kMaxLinearTile.rows * kBlockK];  // few rows: few_stride() apart
  alignas(64) float w[kTilePanels * kBlockK * kPanelRows];
};
static_assert(kFewRows * few_stride(kFewRows) <= kMaxLinearTile.rows * kBlockK);
static_assert(kIntegerScratch <= sizeof(Scratch::x));
static_assert(sizeof(Scratch) <= 256 * 1024);

// Operands of one pass: `count` consecutive k.
struct Pass {
  const float* x;  // [num_rows], few_stride() or kBlockK apart
  int count;       // multiple of 8
  std::int64_t k_begin;
  const std::byte* panels;  // first panel of the tile, from its k = 0
  std::int64_t panel_bytes;
  float* acc;             // [num_rows, kAccStride]
  bool is_new;            // as the tile is
  const std::byte* next;  // what the thread reads after the pass; null: k that come next
};

template <int kRows, int kPanels>
struct Accumulators {
  F32 v[kRows][kPanels];

  PAGED_INLINE void clear() {
    for (int r = 0; r < kRows; ++r)
      for (int p = 0; p < kPanels; ++p) v[r][p] = zero();
  }
  PAGED_INLINE void add_to(float* acc) const {
    for (int r = 0; r < kRows; ++r)
      for (int p = 0; p < kPanels; ++p) {
        float* at = acc + r * kAccStride + p * kPanelRows;
        store(at, load(at) + v[r][p]);
      }
  }
};

// Calls chain(sums, begin, end) for each chain of a pass and adds what it leaves in the sums to acc.
template <int kRows, int kPanels, typename Chain>
PAGED_INLINE void add_chains(int count, float* acc, Chain chain) {
  for (int begin = 0; begin < count; begin += kChain) {
    Accumulators<kRows, kPanels> sums;
    sums.clear();
    chain(sums.v, begin, count - begin < kChain ? count : begin + kChain);
    sums.add_to(acc);
  }
}

// ---- few rows

template <typename Format, int kRows, int kPanels>
void multiply_direct(const Pass& pass, int panel) {
  constexpr int kStride = few_stride(kRows);
  const float* x = pass.x;
  const std::byte* weights = pass.panels + panel * pass.panel_bytes;
  add_chains<kRows, kPanels>(pass.count, pass.acc + panel * kPanelRows, [&](auto& acc, int begin, int end) {
    for (int k = begin; k < end; k += 8) {
      for (int p = 0; p < kPanels; ++p) {
        F32 w[8];
        const std::byte* panel_p = weights + p * pass.panel_bytes;
        // Panels of float32 are long enough for the machine to follow by itself.
        for (int i = 0; Format::kBytes < 64 && i < 8 * Format::kBytes; i += 64)
          __builtin_prefetch(panel_p + (pass.k_begin + k) * Format::kBytes + i + kAhead);
        Format::decode(panel_p, pass.k_begin + k, w);
        for (int j = 0; j < 8; ++j)
          for (int r = 0; r < kRows; ++r) acc[r][p] = fma(set1(x[r * kStride + k + j]), w[j], acc[r][p]);
      }
    }
  });
}

template <typename Format, int kRows>
void multiply_few(const Pass& pass, int num_rows, int num_panels) {
  if constexpr (kRows > 1) {
    if (num_rows < kRows) return multiply_few<Format, kRows - 1>(pass, num_rows, num_panels);
  }
  constexpr int kPanels = kDirectTiles / kRows > 1 ? kDirectTiles / kRows : 1;
  int panel = 0;
  for (; panel + kPanels <= num_panels; panel += kPanels) multiply_direct<Format, kRows, kPanels>(pass, panel);
  for (; panel < num_panels; ++panel) multiply_direct<Format, kRows, 1>(pass, panel);
}

// ---- many rows

// Of the panels that come next, asked for beside each k: or their decoding would wait for memory, and memory for the
// products. All in one place where nothing is to be asked for.
struct LinesOfNext {
  const std::byte* at;
  std::int64_t panel_bytes;
  int bytes;  // of one k
};

// w: [kPanels][count][16].
template <int kRows, int kPanels>
void multiply_floats(const Pass& pass, const float* const* w, int row, int panel, const LinesOfNext& next) {
  const float* x = pass.x + row * kBlockK;
  float* out = pass.acc + row * kAccStride + panel * kPanelRows;
  add_chains<kRows, kPanels>(pass.count, out, [&](auto& acc, int begin, int end) {
    for (int k = begin; k < end; ++k) {
      for (int p = 0; p < kPanels; ++p) __builtin_prefetch(next.at + p * next.panel_bytes + k * next.bytes, 0, 2);
      F32 weights[kPanels];
      for (int p = 0; p < kPanels; ++p) weights[p] = load(w[p] + k * kPanelRows);
      for (int r = 0; r < kRows; ++r) {
        const F32 element = set1(x[r * kBlockK + k]);
        for (int p = 0; p < kPanels; ++p) acc[r][p] = fma(element, weights[p], acc[r][p]);
      }
    }
  });
}

template <int kPanels, int kRows>
PAGED_INLINE void multiply_rows(const Pass& pass, const float* const* w, int row, int num_rows, int panel,
                                const LinesOfNext& next) {
  if (num_rows == kRows)
    multiply_floats<kRows, kPanels>(pass, w, row, panel, next);
  else if constexpr (kRows > 1)
    multiply_rows<kPanels, kRows - 1>(pass, w, row, num_rows, panel, next);
}

template <typename Format, int kPanels>
void multiply_decoded(const Pass& pass, int num_rows, int panel, LinesOfNext next, float* scratch) {
  const float* w[kPanels];
  for (int p = 0; p < kPanels; ++p) {
    const std::byte* from = pass.panels + (panel + p) * pass.panel_bytes;
    float* to = scratch + p * kBlockK * kPanelRows;
    w[p] = to;
    for (int k = 0; k < pass.count; k += 8) {
      F32 weights[8];
      Format::decode(from, pass.k_begin + k, weights);
      for (int j = 0; j < 8; ++j) store(to + (k + j) * kPanelRows, weights[j]);
    }
  }
  const int tile = even_tile(num_rows, kTileRows);
  for (int row = 0; row < num_rows; row += tile, next = {next.at, 0, 0})
    multiply_rows<kPanels, kTileRows>(pass, w, row, smaller(tile, num_rows - row), panel, next);
}

template <typename Format>
void multiply_many(const Pass& pass, int num_rows, int num_panels, float* scratch) {
  const auto after = [&](int panel) -> LinesOfNext {
    if (!pass.is_new) return {pass.panels, 0, 0};
    const std::byte* at = pass.next;
    if (panel < num_panels)
      at = pass.panels + panel * pass.panel_bytes + pass.k_begin * Format::kBytes;
    else if (at == nullptr)
      at = pass.panels + (pass.k_begin + pass.count) * Format::kBytes;
    return {at, pass.panel_bytes, Format::kBytes};
  };
  int panel = 0;
  for (; panel + kTilePanels <= num_panels; panel += kTilePanels)
    multiply_decoded<Format, kTilePanels>(pass, num_rows, panel, after(panel + kTilePanels), scratch);
  for (; panel < num_panels; ++panel) multiply_decoded<Format, 1>(pass, num_rows, panel, after(panel + 1), scratch);
}

// ---- the tile

// Copies columns [k, k + count) of the tile's rows in float32, zero filled up to a multiple of 16.
template <typename From>
void copy_rows(const LinearTile& tile, std::int64_t k, int count, int stride, float* to) {
  for (int r = 0; r < tile.num_rows; ++r) {
    const From* from = row_of<const From>(tile.x, tile.row_begin + r) + k;
    float* row = to + std::int64_t{r} * stride;
    for_lanes(count, [&](std::int64_t i, int n) { store(row + i, load_lanes(from + i, n)); });
  }
}

void run_pass(const LinearTile& tile, const Pass& pass, float* scratch) {
  with_format(tile.weights->format, [&](auto format) {
    if (tile.num_rows <= kFewRows)
      multiply_few<decltype(format), kFewRows>(pass, tile.num_rows, tile.num_panels);
    else
      multiply_many<decltype(format)>(pass, tile.num_rows, tile.num_panels, scratch);
  });
}

}  // namespace

void linear(const LinearTile& tile) {
  Scratch& scratch = *reinterpret_cast<Scratch*>(tile.scratch);
  if constexpr (kDotBf16) {
    if (multiplies_bfloat16(tile)) {
      with_type(tile.out.dtype, [&](auto tag) {
        if constexpr (kHasTiles)
          multiply_tiles<decltype(tag)>(tile);
        else
          multiply_by_pairs<decltype(tag)>(tile);
      });
      return;
    }
  }
  if (layout_of(tile.weights->format) != nullptr) {
    if (tile.codes->layout == CodeLayout::kTiles) return linear_code_tiles(tile);
    multiply_integers(tile, scratch.acc, kAccStride, reinterpret_cast<std::byte*>(scratch.x));
    with_type(tile.out.dtype, [&](auto tag) { finish_rows<decltype(tag)>(tile, scratch.acc, kAccStride); });
    return;
  }
  const PackedMatrix& matrix = *tile.weights;
  const bool is_few = tile.num_rows <= kFewRows;
  const int block = is_few ? few_block(tile.num_rows) : kBlockK;
  const int stride = is_few ? few_stride(tile.num_rows) : kBlockK;
  __builtin_memset(scratch.acc, 0, static_cast<unsigned long>(tile.num_rows) * kAccStride * sizeof(float));
  for (std::int64_t k = 0; k < matrix.cols; k += block) {
    const int count = static_cast<int>(matrix.cols - k < block ? matrix.cols - k : block);
    with_type(tile.x.dtype, [&](auto tag) { copy_rows<decltype(tag)>(tile, k, count, stride, scratch.x); });
    const Pass pass{.x = scratch.x,
                    .count = (count + 7) / 8 * 8,
                    .k_begin = k,
                    .panels = matrix.data + tile.panel_begin * matrix.panel_bytes,
                    .panel_bytes = matrix.panel_bytes,
                    .acc = scratch.acc,
                    .is_new = tile.is_new,
                    .next = k + block < matrix.cols ? nullptr : tile.next};
    run_pass(tile, pass, scratch.w);
  }
  with_type(tile.out.dtype, [&](auto tag) { finish_rows<decltype(tag)>(tile, scratch.acc, kAccStride); });
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

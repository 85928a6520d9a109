// SPDX-License-Identifier: Apache-2.0
#include "cpu/isa/linear_integer.h"

#include "cpu/isa/linear_formats.h"
#include "cpu/isa/quantise_rows.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {
namespace {

constexpr int kFewRows = 4;        // weights come from memory once, whatever the order
constexpr int kLongBlockK = 2048;  // k of one pass over few rows
constexpr int kBlockK = 512;       // over many: x and two panels stay in the nearest caches
constexpr int kPadding = 64;       // between rows of codes: rows as far apart as a power of two evict one another

// Operands of one pass: `count` consecutive k.
struct Pass {
  const std::int8_t* codes;  // [num_rows, code_stride]
  int code_stride;
  const ByteGroup* groups;  // [num_rows, group_stride]
  int group_stride;
  int count;
  std::int64_t k_begin;
  const std::byte* panels;  // first panel of the tile, from its k = 0
  std::int64_t panel_bytes;
  float* acc;  // [num_rows, acc_stride]
  int acc_stride;
};
static_assert(kMaxTileRows * (kBlockK + kPadding + kBlockK / kByteGroup * sizeof(ByteGroup)) <= kIntegerScratch);
static_assert(kFewRows * (kLongBlockK + kPadding + kLongBlockK / kByteGroup * sizeof(ByteGroup)) <= kIntegerScratch);

constexpr int max_code_of(const QuantLayout& layout) {
  if (layout.bits == 4) return 15;
  if (!layout.is_signed) return 31;        // of formats with five bits
  return layout.group_k == 16 ? 32 : 128;  // of Q6_K, else of any byte
}

template <QuantLayout kLayout>
struct ByteFormat {
  static constexpr int kGroup = kLayout.group_k;
  static constexpr int kWords = kGroup / 4;
  using Float = QuantFormat<kLayout>;
  using Dot = ByteDot<kLayout.is_signed, max_code_of(kLayout), kWords>;

  PAGED_INLINE static const std::byte* codes(const std::byte* panel, std::int64_t k) {
    constexpr int kGroupBytes = kGroup * kPanelRows * kLayout.bits / 8;
    return Float::block_of(panel, k) + kLayout.codes_offset() +
           static_cast<int>(k % kLayout.block_k) / kGroup * kGroupBytes;
  }

  // k = 4 * i .. 4 * i + 3 of the group whose codes begin at `codes`.
  PAGED_INLINE static I32 word(const std::byte* codes, int i) {
    if constexpr (kLayout.bits == 8) return Dot::prepare(load_words(codes + i * 64));
    const I32 pair = load_words(codes + i / 2 * 64), mask = set1_word(0x0f0f0f0fu);
    return i % 2 == 0 ? pair & mask : shift_right<4>(pair) & mask;
  }

  // What the sums of products start from, so that codes that count from a zero need no more thought.
  PAGED_INLINE static std::int32_t start(const ByteGroup& group, int k) {
    constexpr int kOffset = kLayout.zero + Dot::kOffset;
    if constexpr (kOffset == 0) return 0;
    if constexpr (kGroup == kByteGroup) return -kOffset * (group.sums[0] + group.sums[1]);
    return -kOffset * group.sums[k / kGroup % 2];
  }
};

// Sums of products of one group, k of the pass.
template <typename Format, int kRows, int kPanels>
PAGED_INLINE void multiply_group(const std::int8_t* const (&x)[kRows], const std::byte* const (&codes)[kPanels],
                                 I32 (&sums)[kRows][kPanels]) {
  using Dot = typename Format::Dot;
#pragma GCC unroll 8
  for (int begin = 0; begin < Format::kWords; begin += Dot::kRun) {
    I32 run[kRows][kPanels];
    for (int r = 0; r < kRows; ++r)
      for (int p = 0; p < kPanels; ++p) run[r][p] = Dot::begin(sums[r][p]);
#pragma GCC unroll 8
    for (int i = begin; i < begin + Dot::kRun; ++i) {
      I32 w[kPanels];
      for (int p = 0; p < kPanels; ++p) w[p] = Format::word(codes[p], i);
      for (int r = 0; r < kRows; ++r) {
        std::uint32_t four;
        __builtin_memcpy(&four, x[r] + 4 * i, 4);
        const I32 element = set1_word(four);
        for (int p = 0; p < kPanels; ++p) run[r][p] = Dot::next(run[r][p], w[p], element);
      }
    }
    for (int r = 0; r < kRows; ++r)
      for (int p = 0; p < kPanels; ++p) sums[r][p] = Dot::end(sums[r][p], run[r][p]);
  }
}

template <QuantLayout kLayout, int kRows, int kPanels>
void multiply(const Pass& pass, int row, int panel) {
  using Format = ByteFormat<kLayout>;
  const ByteGroup* groups = pass.groups + row * pass.group_stride;
  const std::byte* weights = pass.panels + panel * pass.panel_bytes;
  float* out = pass.acc + row * pass.acc_stride + panel * kPanelRows;
  F32 acc[kRows][kPanels];
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPanels; ++p) acc[r][p] = load(out + r * pass.acc_stride + p * kPanelRows);
  for (int k = 0; k < pass.count; k += Format::kGroup) {
    const std::int8_t* x[kRows];
    const std::byte* codes[kPanels];
    I32 sums[kRows][kPanels];
    for (int p = 0; p < kPanels; ++p) codes[p] = Format::codes(weights + p * pass.panel_bytes, pass.k_begin + k);
    for (int r = 0; r < kRows; ++r) {
      x[r] = pass.codes + (row + r) * pass.code_stride + k;
      const std::int32_t start = Format::start(groups[r * pass.group_stride + k / kByteGroup], k);
      for (int p = 0; p < kPanels; ++p) sums[r][p] = set1_word(static_cast<std::uint32_t>(start));
    }
    multiply_group<Format>(x, codes, sums);
    for (int p = 0; p < kPanels; ++p) {
      const ScaleAndMin scale = Format::Float::scales(weights + p * pass.panel_bytes, pass.k_begin + k);
      for (int r = 0; r < kRows; ++r) {
        const ByteGroup& group = groups[r * pass.group_stride + k / kByteGroup];
        acc[r][p] = acc[r][p] + int_to_float(sums[r][p]) * (scale.scale * set1(group.scale));
        if constexpr (kLayout.has_min) acc[r][p] = acc[r][p] + scale.min * set1(group.scaled_sum);
      }
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPanels; ++p) store(out + r * pass.acc_stride + p * kPanelRows, acc[r][p]);
}

template <QuantLayout kLayout, int kRows>
void multiply_rows(const Pass& pass, int row, int num_rows, int num_panels) {
  if (num_rows == kRows) {
    constexpr int kMost = kByteTiles / kRows;
    constexpr int kPanels = kMost > 4 ? 4 : kMost < 1 ? 1 : kMost;
    int panel = 0;
    for (; panel + kPanels <= num_panels; panel += kPanels) multiply<kLayout, kRows, kPanels>(pass, row, panel);
    for (; panel < num_panels; ++panel) multiply<kLayout, kRows, 1>(pass, row, panel);
  } else if constexpr (kRows > 1) {
    multiply_rows<kLayout, kRows - 1>(pass, row, num_rows, num_panels);
  }
}

// Register tiles as even as they can be.
template <QuantLayout kLayout>
void run_pass(const Pass& pass, int num_rows, int num_panels) {
  const int tiles = (num_rows + kByteRows - 1) / kByteRows;
  const int tile = (num_rows + tiles - 1) / tiles;
  const int panels = num_rows <= kFewRows ? num_panels : 2;  // that stay in the nearest cache for all rows
  for (int panel = 0; panel < num_panels; panel += panels) {
    Pass part = pass;
    part.panels += panel * pass.panel_bytes;
    part.acc += panel * kPanelRows;
    const int count = num_panels - panel < panels ? num_panels - panel : panels;
    for (int row = 0; row < num_rows; row += tile)
      multiply_rows<kLayout, kByteRows>(part, row, num_rows - row < tile ? num_rows - row : tile, count);
  }
}

void run_pass(PackedFormat format, const Pass& pass, int num_rows, int num_panels) {
  switch (format) {
    case PackedFormat::kQ8: return run_pass<kQ8Layout>(pass, num_rows, num_panels);
    case PackedFormat::kQ8Min: return run_pass<kQ8MinLayout>(pass, num_rows, num_panels);
    case PackedFormat::kQ4: return run_pass<kQ4Layout>(pass, num_rows, num_panels);
    case PackedFormat::kQ4Min: return run_pass<kQ4MinLayout>(pass, num_rows, num_panels);
    case PackedFormat::kQ4K: return run_pass<kQ4KLayout>(pass, num_rows, num_panels);
    case PackedFormat::kQ5K: return run_pass<kQ5KLayout>(pass, num_rows, num_panels);
    case PackedFormat::kQ6K: return run_pass<kQ6KLayout>(pass, num_rows, num_panels);
    default: return;
  }
}

}  // namespace

bool multiply_integers(const LinearTile& tile, float* acc, int acc_stride, std::byte* scratch) {
  const PackedMatrix& matrix = *tile.weights;
  if (matrix.float_activations || layout_of(matrix.format) == nullptr) return false;
  const int block = tile.num_rows <= kFewRows ? kLongBlockK : kBlockK;
  const int group_stride = block / kByteGroup;
  auto* groups = reinterpret_cast<ByteGroup*>(scratch);
  auto* codes = reinterpret_cast<std::int8_t*>(groups + tile.num_rows * group_stride);
  __builtin_memset(acc, 0,
                   static_cast<unsigned long>(tile.num_rows) * static_cast<unsigned>(acc_stride) * sizeof(float));
  for (std::int64_t k = 0; k < matrix.cols; k += block) {
    const int count = static_cast<int>(matrix.cols - k < block ? matrix.cols - k : block);
    const int code_stride = block + kPadding;
    with_type(tile.x.dtype, [&](auto tag) {
      for (int r = 0; r < tile.num_rows; ++r)
        quantise_row(row_of<const decltype(tag)>(tile.x, tile.row_begin + r) + k, count, codes + r * code_stride,
                     groups + r * group_stride);
    });
    const Pass pass{.codes = codes,
                    .code_stride = code_stride,
                    .groups = groups,
                    .group_stride = group_stride,
                    .count = count,
                    .k_begin = k,
                    .panels = matrix.data + tile.panel_begin * matrix.panel_bytes,
                    .panel_bytes = matrix.panel_bytes,
                    .acc = acc,
                    .acc_stride = acc_stride};
    run_pass(matrix.format, pass, tile.num_rows, tile.num_panels);
  }
  return true;
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE

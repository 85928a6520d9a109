// SPDX-License-Identifier: Apache-2.0
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <span>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/divide_up.h"
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

template <typename Word>
void interleave_from(std::int64_t first, const PanelSource& source, std::int64_t num_words, std::byte* panel) {
  constexpr auto kSize = static_cast<std::int64_t>(sizeof(Word));
  for (int lane = 0; lane < kPanelRows; ++lane)
    for (std::int64_t k = first; k < num_words && source.rows[lane] != nullptr; ++k)
      std::memcpy(panel + (k * kPanelRows + lane) * kSize, source.rows[lane] + k * kSize, sizeof(Word));
}

using Words4 [[gnu::vector_size(16)]] = std::uint32_t;

// Four words of each of four rows, of which word k goes to to[k][0 .. 4).
void transpose(const std::byte* const* rows, std::int64_t offset, std::byte* to) {
  Words4 a, b, c, d;
  std::memcpy(&a, rows[0] + offset, 16);
  std::memcpy(&b, rows[1] + offset, 16);
  std::memcpy(&c, rows[2] + offset, 16);
  std::memcpy(&d, rows[3] + offset, 16);
  const Words4 low = __builtin_shufflevector(a, b, 0, 4, 1, 5), low2 = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Words4 high = __builtin_shufflevector(a, b, 2, 6, 3, 7), high2 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const Words4 out[] = {__builtin_shufflevector(low, low2, 0, 1, 4, 5), __builtin_shufflevector(low, low2, 2, 3, 6, 7),
                        __builtin_shufflevector(high, high2, 0, 1, 4, 5),
                        __builtin_shufflevector(high, high2, 2, 3, 6, 7)};
  for (int k = 0; k < 4; ++k) std::memcpy(to + k * kPanelRows * 4, &out[k], 16);
}

// [16 rows][num_words] -> [num_words][16] of 16-bit or 32-bit words; what is filled up is zero already.
template <typename Word>
void interleave(const PanelSource& source, std::int64_t num_words, std::byte* panel) {
  std::int64_t first = 0;
  if (sizeof(Word) == 4 && source.rows[kPanelRows - 1] != nullptr)
    for (; first + 4 <= num_words; first += 4)
      for (int lane = 0; lane < kPanelRows; lane += 4)
        transpose(source.rows + lane, first * 4, panel + (first * kPanelRows + lane) * 4);
  interleave_from<Word>(first, source, num_words, panel);
}

// Pairs of a row's bfloat16 lie together: words of 32 bits, but for the last of an odd number.
void interleave_pairs(const PanelSource& source, std::int64_t cols, std::byte* panel) {
  interleave<std::uint32_t>(source, cols / 2, panel);
  if (cols % 2 == 0) return;
  for (int lane = 0; lane < kPanelRows; ++lane)
    if (source.rows[lane] != nullptr)
      std::memcpy(panel + (cols / 2 * kPanelRows + lane) * 4, source.rows[lane] + (cols - 1) * 2, 2);
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
  for (int k = 0; k < layout.block_k; k += 8) {
    std::uint32_t low, high;
    std::memcpy(&low, block.codes + k, 4);
    std::memcpy(&high, block.codes + k + 4, 4);
    low |= high << 4;
    std::memcpy(codes + k / 8 * 64 + lane * 4, &low, 4);
  }
}

void pack_blocks(const PanelSource& source, WeightType type, const QuantLayout& layout, std::int64_t cols,
                 std::byte* panel) {
  const std::int64_t num_blocks = cols / layout.block_k;
  const int source_bytes = cpu::block_size_of(type).num_bytes;
  for (std::int64_t b = 0; b < num_blocks; ++b) {
    std::byte* to = panel + b * layout.block_bytes();
    for (int lane = 0; lane < kPanelRows; ++lane) {
      cpu::GgufBlock block;
      if (source.rows[lane] != nullptr)
        cpu::read_block(type, source.rows[lane] + b * source_bytes, block);
      else
        block = {};
      place_header(block, layout, lane, to);
      place_codes(block, layout, lane, to + layout.codes_offset());
    }
  }
}

void pack_panel(const PanelSource& source, WeightType type, const cpu::PackedMatrix& matrix, std::int64_t panel) {
  std::byte* to = matrix.data + panel * matrix.panel_bytes;
  if (const QuantLayout* layout = cpu::layout_of(matrix.format)) {
    pack_blocks(source, type, *layout, matrix.cols, to);
    return;
  }
  if (matrix.cols % 8 != 0 || source.rows[kPanelRows - 1] == nullptr)
    std::memset(to, 0, static_cast<std::size_t>(matrix.panel_bytes));
  if (matrix.format == PackedFormat::kFloat32)
    interleave<std::uint32_t>(source, matrix.cols, to);
  else if (matrix.format == PackedFormat::kFloat16)
    interleave<std::uint16_t>(source, matrix.cols, to);
  else
    interleave_pairs(source, matrix.cols, to);
}

// Lets the memory of the pages that lie wholly in these bytes of a mapped file go.
void unload(const std::byte* data, std::int64_t num_bytes) {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t first = divide_up(begin, page) * page;
  const std::uintptr_t end = (begin + static_cast<std::uintptr_t>(num_bytes)) / page * page;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
}

// Panels of a matrix that one thread packs in one go: large enough that two threads seldom wait for the same huge page.
struct Run {
  const WeightSource* source = nullptr;  // null: no panels
  const cpu::PackedMatrix* matrix = nullptr;
  std::int64_t first_panel = 0;
  std::int64_t end_panel = 0;
};

constexpr std::int64_t kRunBytes = std::int64_t{1} << 20;

// Appends to the runs of each node those of the panels that its threads will read in products.
void append_runs(const WeightSource& source, const cpu::PackedMatrix& matrix, std::vector<std::vector<Run>>& of_node) {
  const std::int64_t num_nodes = std::ssize(of_node);
  const std::int64_t panels =
      std::min(divide_up(kRunBytes, matrix.panel_bytes), divide_up(matrix.num_panels, num_nodes));
  for (std::int64_t first = 0; first < matrix.num_panels; first += panels)
    of_node[static_cast<std::size_t>(first * num_nodes / matrix.num_panels)].push_back(
        {&source, &matrix, first, std::min(first + panels, matrix.num_panels)});
}

// One list, of which each node has as much: empty runs fill theirs up.
std::vector<Run> join(const std::vector<std::vector<Run>>& of_node) {
  std::size_t longest = 0;
  for (const std::vector<Run>& runs : of_node) longest = std::max(longest, runs.size());
  std::vector<Run> all;
  for (const std::vector<Run>& runs : of_node) {
    all.insert(all.end(), runs.begin(), runs.end());
    all.resize(all.size() + longest - runs.size());
  }
  return all;
}

void pack_run(const Run& run) {
  if (run.source == nullptr) return;
  const WeightSource& source = *run.source;
  const std::int64_t row_bytes = source.num_bytes / source.rows;
  for (std::int64_t panel = run.first_panel; panel < run.end_panel; ++panel)
    pack_panel(panel_source(source, row_bytes, panel), source.type, *run.matrix, panel);
  if (!source.is_file) return;
  const std::int64_t first_row = run.first_panel * kPanelRows;
  const std::int64_t num_rows = std::min(run.end_panel * kPanelRows, source.rows) - first_row;
  unload(static_cast<const std::byte*>(source.data) + first_row * row_bytes, num_rows * row_bytes);
}

// Matrices of the sources' sizes, not yet filled.
std::vector<std::unique_ptr<cpu::PackedMatrix>> allocate(std::span<const WeightSource> sources) {
  std::vector<std::int64_t> offsets;
  std::int64_t end = 0;
  for (const WeightSource& source : sources) {
    offsets.push_back(end);
    const std::int64_t bytes =
        cpu::PackedSize(source.rows, source.cols, cpu::packed_format_of(source.type)).num_bytes();
    end += divide_up(bytes, std::int64_t{64}) * 64;
  }
  const auto memory = std::make_shared<const AlignedBuffer>(AlignedBuffer::for_huge_pages(end));
  memory->ask_for_huge_pages(0, end);  // fewer TLB misses on a stream of weights
  std::vector<std::unique_ptr<cpu::PackedMatrix>> matrices;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const WeightSource& source = sources[i];
    matrices.push_back(std::make_unique<cpu::PackedMatrix>(source.rows, source.cols, cpu::packed_format_of(source.type),
                                                           memory, offsets[i]));
  }
  return matrices;
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
  return std::move(pack_matrices({&source, 1}, threads).front());
}

std::vector<WeightMatrixPtr> pack_matrices(std::span<const WeightSource> sources, ThreadPool& threads) {
  for (const WeightSource& source : sources) cpu::checked_row_bytes(source);
  auto matrices = allocate(sources);
  std::vector<std::vector<Run>> of_node(static_cast<std::size_t>(threads.num_nodes()));
  for (std::size_t i = 0; i < sources.size(); ++i) append_runs(sources[i], *matrices[i], of_node);
  const std::vector<Run> runs = join(of_node);
  threads.parallel_for(std::ssize(runs), [&](std::int64_t i, int) { pack_run(runs[static_cast<std::size_t>(i)]); });
  // A page that is read brings those around it with it, which a run may have let go before.
  for (const WeightSource& source : sources)
    if (source.is_file) unload(static_cast<const std::byte*>(source.data), source.num_bytes);
  return {std::make_move_iterator(matrices.begin()), std::make_move_iterator(matrices.end())};
}

}  // namespace paged

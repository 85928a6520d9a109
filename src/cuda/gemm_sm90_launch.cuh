// SPDX-License-Identifier: Apache-2.0
// Launches of gemm_sm90's kernels for one element type: which tile for how many rows.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "base/check.h"
#include "cuda/gemm_sm90.h"
#include "cuda/gemm_sm90_slab.cuh"
#include "cuda/gemm_sm90_tile.cuh"

namespace paged::gpu {
namespace {

// Boxes of `rows` weight rows (gated: half of them gates, half their ups, in turns of 8) by 64 k.
TensorMap weights_map(const GemmProblem& problem, int rows) {
  const auto k = static_cast<std::uint64_t>(problem.x.cols), n = static_cast<std::uint64_t>(problem.out.cols);
  const auto box = static_cast<std::uint32_t>(rows);
  return make_swizzled_tensor_map(
      problem.gated
          ? TensorBoxes{problem.weights, 4, {k, 8, 2, n / 8}, {0, 2 * k, 2 * n * k, 16 * k}, {64, 8, 2, box / 16}}
          : TensorBoxes{problem.weights, 2, {k, n}, {0, 2 * k}, {64, box}});
}
// Boxes of `rows` rows of x by 64 k.
TensorMap tokens_map(const GemmProblem& problem, int rows) {
  const auto k = static_cast<std::uint64_t>(problem.x.cols), m = static_cast<std::uint64_t>(problem.x.rows);
  const auto stride = static_cast<std::uint64_t>(problem.x.row_stride);
  return make_swizzled_tensor_map({problem.x.data, 2, {k, m}, {0, 2 * stride}, {64, static_cast<std::uint32_t>(rows)}});
}

// What both kinds of kernels need to know.
template <class Arguments>
Arguments common_arguments(const GemmProblem& problem, int weight_rows, int token_rows) {
  Arguments args{};
  args.weights = weights_map(problem, weight_rows);
  args.tokens = tokens_map(problem, token_rows);
  args.out = problem.out.data;
  args.out_stride = problem.out.row_stride;
  args.bias = problem.bias;
  args.num_rows = static_cast<int>(problem.x.rows);
  args.out_cols = static_cast<int>(problem.out.cols);
  args.num_chunks = static_cast<int>((problem.x.cols + 63) / 64);
  args.float_out = problem.out.dtype == DType::kFloat32;
  args.activation = problem.activation;
  return args;
}

constexpr int kSlabsEach = 2;      // on a multiprocessor
constexpr int kChainUnits = 8;     // a warp has but one of them
constexpr int kMaxSlabUnits = 16;  // a box of TMA has at most 256 rows

int units_of(const GemmProblem& problem) {
  const std::int64_t per_unit = problem.gated ? 8 : 16;
  return static_cast<int>((problem.out.cols + per_unit - 1) / per_unit);
}
int slab_units(const GpuContext& gpu, const GemmProblem& problem) {
  const int blocks = kSlabsEach * gpu.num_multiprocessors;  // all at once, and no place left over that some would share
  return (units_of(problem) + blocks - 1) / blocks;
}

int weight_rows_of(const GemmProblem& problem) {
  return static_cast<int>(problem.gated ? 2 * problem.out.cols : problem.out.cols);
}

// The parts, and so the bits, depend on the matrix alone.
int num_parts_of(const GpuContext& gpu, const GemmProblem& problem) {
  const int rows = weight_rows_of(problem), chunks = static_cast<int>(problem.x.cols / 64);
  const bool is_small =
      (rows <= 16 * gpu.num_multiprocessors && chunks >= 32) || (rows <= 32 * gpu.num_multiprocessors && chunks >= 64);
  return !problem.gated && is_small && kParts <= kMaxCluster ? kParts : 1;
}

// Whether a slab of up to eight rows can sum up in the order of tiles: their parts of k are whole chunks, and equal.
bool slab_keeps_order(const GpuContext& gpu, const GemmProblem& problem) {
  const std::int64_t parts = num_parts_of(gpu, problem);
  return parts * slab_units(gpu, problem) <= kChainUnits && problem.x.cols % (parts == 1 ? 64 : 128 * parts) == 0;
}

// Measured on H100: from nine rows on tiles are faster, from 17 on of small matrices too.
bool is_for_slab(const GpuContext& gpu, const GemmProblem& problem) {
  constexpr std::int64_t kSmallMatrixBytes = 16 << 20;
  const bool is_small = 2 * weight_rows_of(problem) * problem.x.cols <= kSmallMatrixBytes;
  if (slab_units(gpu, problem) > kMaxSlabUnits || problem.x.rows > (is_small ? 16 : 8)) return false;
  return !gpu.batch_invariant || (problem.x.rows <= 8 && slab_keeps_order(gpu, problem));
}

constexpr int kSlabRingBytes = 110 * 1024;

// Slots are refilled in turn and a slot must always go to the same warps, or one could take the phase before its own
// for its own: where the ring goes round, its slots are a multiple of warps_k. Few warps suffice; many slots are
// needed. Invariant: each part of k is one chain of sums.
template <class C>
SlabShape slab_shape(int units, bool invariant, const SlabArguments& args) {
  const int num_chunks = args.num_chunks;
  const int slot_bytes = units * 2048 + C::kTokens * 128, slots = std::min(num_chunks, kSlabRingBytes / slot_bytes);
  SlabShape shape{};
  shape.units = units;
  shape.warps_down = (units + C::kUnits - 1) / C::kUnits;
  shape.warps_k = invariant ? args.runs : C::kWarps / shape.warps_down;
  while (!invariant && slots < num_chunks && slots % shape.warps_k > slots / 8) --shape.warps_k;
  shape.pace = kSlabsEach * kPaceCycles * 2 * units;
  shape.slots = slots < num_chunks ? slots - slots % shape.warps_k : slots;
  // Measured: with few tokens several lanes refill faster, with many they get into each other's way.
  shape.loaders = args.num_rows <= 8 ? std::clamp(shape.slots / 8, 1, 4) : 1;
  shape.ring_bytes = std::max(shape.slots * slot_bytes, shape.warps_k * units * 16 * C::kTokens * 4);
  return shape;
}

template <class C>
void launch_slab(const GpuContext& gpu, const GemmProblem& problem) {
  const int units = slab_units(gpu, problem);
  const int token_rows = std::min(C::kTokens, static_cast<int>(problem.x.rows));
  auto args = common_arguments<SlabArguments>(problem, 16 * units, token_rows);
  args.token_bytes = token_rows * 128;
  args.runs = gpu.batch_invariant ? num_parts_of(gpu, problem) : 1;
  const SlabShape shape = slab_shape<C>(units, gpu.batch_invariant, args);
  launch(gemm_sm90_slab_kernel<C>, dim3(static_cast<unsigned>((units_of(problem) + units - 1) / units)),
         dim3(C::kThreads), static_cast<std::size_t>(shape.ring_bytes + 2 * shape.slots * 8),
         static_cast<Stream>(gpu.stream), args, shape);
}

// How a product is cut into tiles.
struct TileShape {
  int weights;                      // rows of a tile
  int parts, row_tiles, tile_rows;  // as in TileArguments
};

template <int... widths>
struct TileWidths {};
template <bool gated, bool split>
using WidthsOf = std::conditional_t<split, TileWidths<16, 32, 64, 128>, TileWidths<32, 48, 64, 96, 112, 128, 224>>;

// The narrowest up to 128 with which every multiprocessor has at most one tile. Of larger matrices that with which the
// busiest one has the fewest weight rows to go through: among equals the narrowest, as its ring is the deepest, or,
// where rows of x are read again for every tile, the widest.
template <int... widths>
int tile_width(TileWidths<widths...>, const GpuContext& gpu, int weight_rows, int tiles_each) {
  int best = 0, fewest = std::numeric_limits<int>::max();
  for (const int width : {widths...}) {
    const int tiles = (weight_rows + width - 1) / width * tiles_each;
    if (tiles <= gpu.num_multiprocessors && width <= 128) return width;
    const int rows = (tiles + gpu.num_multiprocessors - 1) / gpu.num_multiprocessors * width;
    if (width >= 96 && (rows < fewest || (rows == fewest && tiles_each > 1))) best = width, fewest = rows;
  }
  return best;
}

template <bool gated, bool split>
TileShape tile_shape(const GpuContext& gpu, const GemmProblem& problem, int tokens) {
  TileShape shape{};
  const int rows = static_cast<int>(problem.x.rows);
  shape.parts = split ? kParts : 1;
  shape.row_tiles = (rows + tokens - 1) / tokens;
  shape.tile_rows = ((rows + shape.row_tiles - 1) / shape.row_tiles + 7) / 8 * 8;
  shape.weights = tile_width(WidthsOf<gated, split>{}, gpu, weight_rows_of(problem), shape.row_tiles * shape.parts);
  return shape;
}

constexpr int kTileSharedBytes = 226 * 1024;
constexpr int kMaxTileStages = 60;  // their barriers fit before the ring

// A deeper ring of narrow tiles has all of a small matrix, and with it all of x on every multiprocessor, on its way at
// once, which costs the products of a 0.6B model a tenth of their time. Measured on H100; the rings of more rows are
// less deep anyway, and those of up to 32 need all of their depth.
template <class C>
int most_stages(const GemmProblem& problem) {
  return C::kTokens <= 64 && C::kChunks > 1 && problem.x.rows > 32 ? 6 : kMaxTileStages;
}

template <class C>
void launch_tile(const GpuContext& gpu, const GemmProblem& problem, const TileShape& shape) {
  auto args = common_arguments<TileArguments>(problem, C::kWeights, shape.tile_rows / C::kSharers);
  args.tile_rows = shape.tile_rows;
  args.row_tiles = shape.row_tiles;
  args.weight_tiles = (args.out_cols + C::kOutCols * C::kSharers - 1) / (C::kOutCols * C::kSharers);
  args.float_pairs = problem.out.cols % 2 == 0 && problem.out.row_stride % 2 == 0 &&
                     reinterpret_cast<std::uintptr_t>(problem.out.data) % 8 == 0;
  const int chunk_bytes = (shape.tile_rows + C::kWeights) * 128, stage_bytes = C::kChunks * chunk_bytes;
  const int spare_bytes = 1024 + std::max(0, C::kTokens * 128 - chunk_bytes);
  args.pace = kPaceCycles * C::kChunks * C::kWeights / 8;
  const int tiles = args.row_tiles * args.weight_tiles, all = gpu.num_multiprocessors / C::kSharers;
  const int needed = (args.num_chunks / shape.parts + C::kChunks) / C::kChunks;  // for one tile
  const int room = std::min((kTileSharedBytes - spare_bytes) / stage_bytes, most_stages<C>(problem));
  args.stages = tiles * shape.parts <= all ? std::min(needed, room) : room;
  int bytes = spare_bytes + args.stages * stage_bytes;
  const int waves = (tiles + all - 1) / all;
  int blocks = (tiles + waves - 1) / waves * C::kSharers;
  if constexpr (C::kSplit) {
    bytes = std::max(bytes, 1024 + C::kTokens * C::kWeights * 4 / kParts);
    blocks = tiles * shape.parts;
  }
  launch_clusters(C::kSplit ? shape.parts : C::kSharers, gemm_sm90_tile_kernel<C>, dim3(static_cast<unsigned>(blocks)),
                  dim3(C::kThreads), static_cast<std::size_t>(bytes), static_cast<Stream>(gpu.stream), args);
}

template <class T, int tokens, bool gated, bool split, int... widths>
void launch_width(TileWidths<widths...>, const GpuContext& gpu, const GemmProblem& problem) {
  const TileShape shape = tile_shape<gated, split>(gpu, problem, tokens);
  static_cast<void>(((shape.weights == widths &&
                      (launch_tile<TileConfig<T, tokens, widths, gated, split>>(gpu, problem, shape), true)) ||
                     ...));
}

template <class T, int tokens, bool gated>
void run_tiles(const GpuContext& gpu, const GemmProblem& problem) {
  if constexpr (!gated)
    if (num_parts_of(gpu, problem) > 1)
      return launch_width<T, tokens, gated, true>(WidthsOf<gated, true>{}, gpu, problem);
  launch_width<T, tokens, gated, false>(WidthsOf<gated, false>{}, gpu, problem);
}

// Swapped tiles: 128 weight rows by as many rows of x as there are, up to 256.
constexpr int kSwappedWeights = 128, kSwappedTokens = 256;
using SwappedWidths = TileWidths<160, 192, 224, 256>;

TileShape swapped_shape(const GpuContext& gpu, const GemmProblem& problem) {
  TileShape shape{kSwappedWeights, num_parts_of(gpu, problem), 0, 0};
  const int rows = static_cast<int>(problem.x.rows);
  shape.row_tiles = (rows + kSwappedTokens - 1) / kSwappedTokens;
  shape.tile_rows = ((rows + shape.row_tiles - 1) / shape.row_tiles + 15) / 16 * 16;
  return shape;
}
template <int... widths>
int tokens_of(TileWidths<widths...>, const TileShape& shape) {
  return std::min({widths >= shape.tile_rows ? widths : kSwappedTokens...});
}

// Rows of x times weight rows that the busiest multiprocessor goes through.
std::int64_t work_of(const GpuContext& gpu, const GemmProblem& problem, const TileShape& shape, int tokens) {
  const int tiles = (weight_rows_of(problem) + shape.weights - 1) / shape.weights * shape.row_tiles * shape.parts;
  const int waves = (tiles + gpu.num_multiprocessors - 1) / gpu.num_multiprocessors;
  return std::int64_t{waves} * tokens * shape.weights;
}

// Swapped tiles go through as much in three quarters of the time, measured on H100 from 136 to 2,048 rows.
template <bool gated>
bool swapped_wins(const GpuContext& gpu, const GemmProblem& problem) {
  const TileShape swapped = swapped_shape(gpu, problem);
  const TileShape other =
      swapped.parts > 1 ? tile_shape<gated, true>(gpu, problem, 128) : tile_shape<gated, false>(gpu, problem, 128);
  return 10 * work_of(gpu, problem, swapped, tokens_of(SwappedWidths{}, swapped)) <=
         13 * work_of(gpu, problem, other, 128);
}

template <class T, bool gated, bool split, int sharers, int... widths>
void launch_swapped(TileWidths<widths...> all, const GpuContext& gpu, const GemmProblem& problem) {
  const TileShape shape = swapped_shape(gpu, problem);
  const int tokens = tokens_of(all, shape);
  static_cast<void>((
      (tokens == widths &&
       (launch_tile<TileConfig<T, widths, kSwappedWeights, gated, split, true, sharers>>(gpu, problem, shape), true)) ||
      ...));
}

template <class T, bool gated>
void run_swapped(const GpuContext& gpu, const GemmProblem& problem) {
  if constexpr (!gated)
    if (num_parts_of(gpu, problem) > 1) return launch_swapped<T, gated, true, 1>(SwappedWidths{}, gpu, problem);
  // Sharing pays where many rows meet a long k: 5 % of the time of an 8B model's gates at 2,048 rows.
  constexpr int kSharedRows = 4 * kSwappedTokens, kSharedDepth = 4096;
  if (problem.x.rows >= kSharedRows && problem.x.cols >= kSharedDepth)
    return launch_swapped<T, gated, false, 2>(TileWidths<224, 256>{}, gpu, problem);
  launch_swapped<T, gated, false, 1>(SwappedWidths{}, gpu, problem);
}

template <class T, bool gated>
void run_gemm_sm90(const GpuContext& gpu, const GemmProblem& problem) {
  const std::int64_t rows = problem.x.rows;
  if (!is_for_slab(gpu, problem)) {
    if (rows <= 64) return run_tiles<T, 64, gated>(gpu, problem);
    if (rows > 128 && swapped_wins<gated>(gpu, problem)) return run_swapped<T, gated>(gpu, problem);
    return run_tiles<T, 128, gated>(gpu, problem);
  }
  if (rows > 8) return launch_slab<SlabConfig<T, 16, 4, gated>>(gpu, problem);
  if (slab_units(gpu, problem) > kChainUnits) return launch_slab<SlabConfig<T, 8, 2, gated>>(gpu, problem);
  launch_slab<SlabConfig<T, 8, 1, gated>>(gpu, problem);
}

}  // namespace
}  // namespace paged::gpu

// SPDX-License-Identifier: Apache-2.0
// Launches of gemm_sm90's kernels for one element type: which tile for how many rows.
#pragma once

#include <algorithm>

#include "base/check.h"
#include "cuda/gemm_sm90.h"
#include "cuda/gemm_sm90_many.cuh"
#include "cuda/gemm_sm90_slab.cuh"

namespace paged::gpu {
namespace {

// Weights as boxes of 16 * units rows by 64 k; tokens as boxes of at most `tokens` rows by 64 k.
GemmArguments gemm_arguments(const GemmProblem& problem, int units, int tokens) {
  const auto k = static_cast<std::uint64_t>(problem.x.cols), n = static_cast<std::uint64_t>(problem.out.cols);
  const auto rows = static_cast<std::uint64_t>(problem.x.rows),
             stride = static_cast<std::uint64_t>(problem.x.row_stride);
  const auto box_units = static_cast<std::uint32_t>(units);
  const auto box_tokens = static_cast<std::uint32_t>(std::min<std::int64_t>(tokens, problem.x.rows));
  GemmArguments args{};
  args.weights = make_swizzled_tensor_map(
      problem.gated
          ? TensorBoxes{problem.weights, 4, {k, 8, 2, n / 8}, {0, 2 * k, 2 * n * k, 16 * k}, {64, 8, 2, box_units}}
          : TensorBoxes{problem.weights, 2, {k, n}, {0, 2 * k}, {64, 16 * box_units}});
  args.tokens = make_swizzled_tensor_map({problem.x.data, 2, {k, rows}, {0, 2 * stride}, {64, box_tokens}});
  args.out = problem.out.data;
  args.out_stride = problem.out.row_stride;
  args.bias = problem.bias;
  args.num_rows = static_cast<int>(problem.x.rows);
  args.token_bytes = static_cast<int>(box_tokens) * 128;
  args.out_cols = static_cast<int>(problem.out.cols);
  args.num_chunks = static_cast<int>((problem.x.cols + 63) / 64);
  args.float_out = problem.out.dtype == DType::kFloat32;
  args.activation = problem.activation;
  return args;
}

// The cuts, the same for any number of rows.
void add_cuts(const GpuContext& gpu, bool gated, GemmArguments& args) {
  args.num_tiles = gated ? (args.out_cols + 31) / 32 : (args.out_cols + 63) / 64;
  const std::int64_t units = std::int64_t{args.num_tiles} * args.num_chunks;
  PAGED_INVARIANT(units < 1 << 30, "a matrix of ", units, " units");
  args.num_cuts = static_cast<int>(std::min<std::int64_t>(gpu.num_multiprocessors, units));
  args.partials = static_cast<float*>(gpu.scratch);
  args.counters = gpu.counters;
}

template <class C>
void launch_few(const GpuContext& gpu, const GemmProblem& problem) {
  GemmArguments args = gemm_arguments(problem, C::kRows / 16, C::kTokens);
  add_cuts(gpu, C::kGated, args);
  const std::int64_t bytes = std::int64_t{2} * args.num_cuts * C::kRows * C::kTokens * 4;
  PAGED_INVARIANT(problem.x.rows <= C::kTokens && bytes <= gpu.scratch_bytes && args.num_cuts <= GpuContext::kCounters,
                  "no room for the parts of a product: ", bytes, " bytes");
  launch(gemm_sm90_kernel<C>, dim3(static_cast<unsigned>(args.num_cuts)), dim3(C::kThreads), C::kSharedBytes,
         static_cast<Stream>(gpu.stream), args);
}

template <class C, bool exact>
void launch_many(const GpuContext& gpu, const GemmProblem& problem) {
  GemmArguments args = gemm_arguments(problem, C::kRows / 16, C::kTokens);
  add_cuts(gpu, C::kGated, args);
  const int tiles = (args.num_tiles + C::kGroups - 1) / C::kGroups * ((args.num_rows + C::kTokens - 1) / C::kTokens);
  launch(gemm_sm90_many_kernel<C, exact>,
         dim3(static_cast<unsigned>(std::min(tiles, C::kBlocks * gpu.num_multiprocessors))),
         dim3(128 * C::kGroups + 128), C::kSharedBytes, static_cast<Stream>(gpu.stream), args);
}

constexpr int kMaxSlabRows = 64;
constexpr int kMaxSlabUnits = 16;  // a box of TMA has at most 256 rows

int units_of(const GemmProblem& problem) {
  const std::int64_t per_unit = problem.gated ? 8 : 16;
  return static_cast<int>((problem.out.cols + per_unit - 1) / per_unit);
}
int slab_units(const GpuContext& gpu, const GemmProblem& problem) {
  const int blocks = 2 * gpu.num_multiprocessors;  // all at once, and no place left over that some would share
  return (units_of(problem) + blocks - 1) / blocks;
}

constexpr int kSlabRingBytes = 110 * 1024;  // two blocks fit on a multiprocessor

// Slots are refilled in turn and a slot must always go to the same warps, or one could take the phase before its own
// for its own: where the ring goes round, its slots are a multiple of warps_k. Few warps suffice; many slots are
// needed.
template <class C>
SlabShape slab_shape(int units, const GemmArguments& args) {
  const int num_chunks = args.num_chunks;
  const int slot_bytes = units * 2048 + C::kTokens * 128, slots = std::min(num_chunks, kSlabRingBytes / slot_bytes);
  SlabShape shape{};
  shape.units = units;
  shape.warps_down = (units + C::kUnits - 1) / C::kUnits;
  shape.warps_k = C::kWarps / shape.warps_down;
  while (slots < num_chunks && slots % shape.warps_k > slots / 8) --shape.warps_k;
  shape.slots = slots < num_chunks ? slots - slots % shape.warps_k : slots;
  // Measured: with few tokens several lanes refill faster, with many they get into each other's way.
  shape.loaders = args.num_rows < 8 ? std::clamp(shape.slots / 8, 1, 4) : 1;
  shape.ring_bytes = std::max(shape.slots * slot_bytes, shape.warps_k * units * 16 * C::kTokens * 4);
  return shape;
}

template <class C>
void launch_slab(const GpuContext& gpu, const GemmProblem& problem) {
  const int units = slab_units(gpu, problem);
  const GemmArguments args = gemm_arguments(problem, units, C::kTokens);
  const SlabShape shape = slab_shape<C>(units, args);
  launch(gemm_sm90_slab_kernel<C>, dim3(static_cast<unsigned>((units_of(problem) + units - 1) / units)),
         dim3(C::kThreads), static_cast<std::size_t>(shape.ring_bytes + 2 * shape.slots * 8),
         static_cast<Stream>(gpu.stream), args, shape);
}

// Any number of rows, with the same bits for each.
template <class T, bool gated>
void run_invariant(const GpuContext& gpu, const GemmProblem& problem) {
  const std::int64_t rows = problem.x.rows;
  if (rows <= 8) return launch_few<GemmConfig<T, 64, 8, 12, 2, gated>>(gpu, problem);
  if (rows <= 16) return launch_few<GemmConfig<T, 64, 16, 11, 2, gated>>(gpu, problem);
  if (rows <= 32) return launch_few<GemmConfig<T, 64, 32, 9, 2, gated>>(gpu, problem);
  if (rows <= 64) return launch_few<GemmConfig<T, 64, 64, 7, 2, gated>>(gpu, problem);
  if (rows <= 128) return launch_few<GemmConfig<T, 64, 128, 4, 2, gated>>(gpu, problem);
  launch_many<GemmConfig<T, 128, 128, 6, 1, gated>, true>(gpu, problem);
}

template <class T, bool gated>
void run_gemm_sm90(const GpuContext& gpu, const GemmProblem& problem) {
  const std::int64_t rows = problem.x.rows;
  const int units = slab_units(gpu, problem);
  if (gpu.batch_invariant || (units > kMaxSlabUnits && rows <= kMaxSlabRows))
    return run_invariant<T, gated>(gpu, problem);
  if (rows > kMaxSlabRows) return launch_many<GemmConfig<T, 128, 128, 6, 1, gated>, false>(gpu, problem);
  if (rows <= 8 && units <= 8) return launch_slab<SlabConfig<T, 8, 1, gated>>(gpu, problem);
  if (rows <= 8) return launch_slab<SlabConfig<T, 8, 2, gated>>(gpu, problem);
  if (rows <= 16) return launch_slab<SlabConfig<T, 16, 4, gated>>(gpu, problem);
  if (rows <= 32) return launch_slab<SlabConfig<T, 32, 4, gated>>(gpu, problem);
  launch_slab<SlabConfig<T, 64, 2, gated>>(gpu, problem);
}

}  // namespace
}  // namespace paged::gpu

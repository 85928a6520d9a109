// SPDX-License-Identifier: Apache-2.0
// gemm_sm90.cuh's product for many rows of x, bit for bit the same per row: each block makes whole tiles, and adds up
// the parts of k between gemm_sm90_kernel's cuts in the same order, in registers.
#pragma once

#include "cuda/gemm_sm90.cuh"

namespace paged::gpu {

// Tiles in an order that keeps what neighbours in time read in L2: kBand weight tiles by all rows of x, band after
// band.
struct GemmTile {
  static constexpr int kBand = 8;
  __device__ GemmTile(int num_weight_tiles, int num_row_tiles, int index) {
    const int band = index / (kBand * num_row_tiles), in_band = index % (kBand * num_row_tiles);
    const int left = num_weight_tiles - band * kBand, width = left < kBand ? left : kBand;
    weight_tile = band * kBand + in_band % width;
    row_tile = in_band / width;
  }
  int weight_tile, row_tile;
};

// The tiles of kRows by kTokens; those that a block makes.
template <class C>
struct GemmTiles {
  __device__ explicit GemmTiles(const GemmArguments& args)
      : weight_tiles((args.num_tiles + C::kGroups - 1) / C::kGroups),
        row_tiles((args.num_rows + C::kTokens - 1) / C::kTokens),
        count(weight_tiles * row_tiles) {}
  __device__ GemmTile tile(int index) const { return {weight_tiles, row_tiles, index}; }
  int weight_tiles, row_tiles, count;
};

template <class C>
__device__ __forceinline__ void produce_many(const GemmArguments& args, const GemmShared<C>& shared) {
  const GemmTiles<C> tiles(args);
  int stage = 0, parity = 1;
  wait_for_predecessors();
  for (int index = blockIdx.x; index < tiles.count; index += gridDim.x) {
    const GemmTile tile = tiles.tile(index);
    for (int chunk = 0; chunk < args.num_chunks; ++chunk) {
      wait(&shared.empty[stage], parity);
      load_weights(args, shared, stage, tile.weight_tile, chunk, kEvictNormal);
      load_tokens(args, shared, stage, chunk, tile.row_tile * C::kTokens);
      if (++stage == C::kStages) stage = 0, parity ^= 1;
    }
  }
}

// Where gemm_sm90_kernel cuts the k of a warp group's 64 weight rows: the chunk after `chunk` that begins another part.
struct GemmParts {
  __device__ GemmParts(const GemmArguments& args, int tile)
      : cut(args),
        begin(tile * args.num_chunks),
        num_chunks(args.num_chunks),
        part(cut.block_of(begin)),
        is_cut(tile < args.num_tiles) {}
  __device__ int next_end() {
    const int end = is_cut ? cut.begin(++part) - begin : num_chunks;
    return end < num_chunks ? end : num_chunks;
  }
  GemmCut cut;
  int begin, num_chunks, part;
  bool is_cut;
};

template <class C>
__device__ __forceinline__ void consume_many(const GemmArguments& args, const GemmShared<C>& shared) {
  const GemmTiles<C> tiles(args);
  const int group = threadIdx.x / 128;
  const bool signals = threadIdx.x % 128 == 0;
  float sums[C::kTokens / 2], totals[C::kTokens / 2];
  int stage = 0, parity = 0;
  for (int index = blockIdx.x; index < tiles.count; index += gridDim.x) {
    const GemmTile tile = tiles.tile(index);
    GemmParts parts(args, tile.weight_tile * C::kGroups + group);
#pragma unroll
    for (int i = 0; i < C::kTokens / 2; ++i) totals[i] = 0.0f;
    for (int chunk = 0; chunk < args.num_chunks;) {
      const int part_begin = chunk, part_end = parts.next_end();
      int previous = 0;
      for (; chunk < part_end; ++chunk) {
        wait(&shared.full[stage], parity);
        multiply_stage(shared, stage, group, sums, chunk == part_begin);
        if (chunk != part_begin) {
          wgmma_wait<1>();
          if (signals) arrive(&shared.empty[previous]);
        }
        previous = stage;
        if (++stage == C::kStages) stage = 0, parity ^= 1;
      }
      wgmma_wait<0>();
      if (signals) arrive(&shared.empty[previous]);
      hold(sums);
#pragma unroll
      for (int i = 0; i < C::kTokens / 2; ++i) totals[i] += sums[i];
    }
    store_tile<C>(args, tile.row_tile * C::kTokens, tile.weight_tile, group, totals);
  }
}

// The loading warp group gives its registers to the others.
template <class C>
__global__ void __launch_bounds__(128 * C::kGroups + 128, 1)
    gemm_sm90_many_kernel(const __grid_constant__ GemmArguments args) {
#if PAGED_SM90A
  static_assert(C::kGroups == 2);
  release_dependents();
  GPU_DYN_SHARED(unsigned char, base);
  const GemmShared<C> shared(base);
  begin_gemm(args, shared);
  if (threadIdx.x >= 128 * C::kGroups) {
    decrease_registers<24>();
    if (threadIdx.x == 128 * C::kGroups) produce_many(args, shared);
    return;
  }
  increase_registers<240>();
  wait_for_predecessors();
  consume_many(args, shared);
#endif
}

}  // namespace paged::gpu

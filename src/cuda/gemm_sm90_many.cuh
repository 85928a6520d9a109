// SPDX-License-Identifier: Apache-2.0
// gemm_sm90.cuh's product for many rows of x: each block makes whole tiles. If exact, bit for bit the same per row: the
// parts of k between gemm_sm90_kernel's cuts are added up in the same order, in registers.
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
  const int first_tile = tiles.tile(blockIdx.x).weight_tile;
  const int ahead = args.num_chunks < C::kStages ? args.num_chunks : C::kStages;
  for (int i = 0; i < ahead; ++i) load_weights(args, shared, i, first_tile, i, kEvictNormal);
  wait_for_predecessors();
  int stage = 0, parity = 1, in_ring = ahead;
  for (int index = blockIdx.x; index < tiles.count; index += gridDim.x) {
    const GemmTile tile = tiles.tile(index);
    for (int chunk = 0; chunk < args.num_chunks; ++chunk) {
      wait(&shared.empty[stage], parity);
      if (in_ring > 0)
        --in_ring;
      else
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

// sums = weights x tokens over the next chunks of a tile.
template <class C>
__device__ __forceinline__ void multiply_chunks(const GemmShared<C>& shared, int group, int chunks, int& stage,
                                                int& parity, float (&sums)[C::kTokens / 2]) {
  const bool signals = threadIdx.x % 128 == 0;
  int previous = 0;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    wait(&shared.full[stage], parity);
    multiply_stage(shared, stage, group, sums, chunk == 0);
    if (chunk != 0) {
      wgmma_wait<1>();
      if (signals) arrive(&shared.empty[previous]);
    }
    previous = stage;
    if (++stage == C::kStages) stage = 0, parity ^= 1;
  }
  wgmma_wait<0>();
  if (signals) arrive(&shared.empty[previous]);
  hold(sums);
}

template <class C, bool exact>
__device__ __forceinline__ void consume_many(const GemmArguments& args, const GemmShared<C>& shared) {
  const GemmTiles<C> tiles(args);
  const int group = threadIdx.x / 128;
  float sums[C::kTokens / 2];
  int stage = 0, parity = 0;
  for (int index = blockIdx.x; index < tiles.count; index += gridDim.x) {
    const GemmTile tile = tiles.tile(index);
    if constexpr (exact) {
      float totals[C::kTokens / 2] = {};
      GemmParts parts(args, tile.weight_tile * C::kGroups + group);
      for (int begin = 0; begin < args.num_chunks;) {
        const int end = parts.next_end();
        multiply_chunks(shared, group, end - begin, stage, parity, sums);
        begin = end;
#pragma unroll
        for (int i = 0; i < C::kTokens / 2; ++i) totals[i] += sums[i];
      }
      store_tile<C>(args, tile.row_tile * C::kTokens, tile.weight_tile, group, totals);
    } else {
      multiply_chunks(shared, group, args.num_chunks, stage, parity, sums);
      store_tile<C>(args, tile.row_tile * C::kTokens, tile.weight_tile, group, sums);
    }
  }
}

// With two warp groups the loading one gives its registers to them.
template <class C, bool exact>
__global__ void __launch_bounds__(128 * C::kGroups + 128, C::kBlocks)
    gemm_sm90_many_kernel(const __grid_constant__ GemmArguments args) {
#if PAGED_SM90A
  static_assert(C::kGroups == 1 || C::kBlocks == 1, "the registers of one block on a multiprocessor");
  release_dependents();
  GPU_DYN_SHARED(unsigned char, base);
  const GemmShared<C> shared(base);
  begin_gemm(args, shared);
  if (threadIdx.x >= 128 * C::kGroups) {
    if constexpr (C::kGroups == 2) decrease_registers<24>();
    if (threadIdx.x == 128 * C::kGroups) produce_many(args, shared);
    return;
  }
  if constexpr (C::kGroups == 2) increase_registers<240>();
  wait_for_predecessors();
  consume_many<C, exact>(args, shared);
#endif
}

}  // namespace paged::gpu

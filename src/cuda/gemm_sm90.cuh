// SPDX-License-Identifier: Apache-2.0
// out[m, n] = x[m, :] . weight[n, :] on Hopper, for few rows m: the weights are streamed once, at the rate of the
// memory. Operands are swapped: a tile of weight rows is wgmma's A (64 rows a warp group), all rows of x are its B, so
// one row of x wastes nothing that matters. One warp keeps a ring of TMA loads full; the loads of the whole first ring
// are issued before the wait for the previous kernel, so the memory never idles between two kernels.
//
// Work is cut as in stream-K (Osama et al., 2023): the (tile, 64 k) units in order are dealt out evenly to one block
// per multiprocessor. A tile that was cut is summed by the block that finishes last, always in ascending k. Where the
// cuts are depends on (N, K, multiprocessors) alone, and so do the bits of a row: not on the number of rows, nor on
// kTokens.
#pragma once

#include <ptx_sm90.h>

#include "gpu/gpu.h"
#include "ops/ops.h"

namespace paged::gpu {

struct GemmArguments {
  TensorMap weights, tokens;
  void* out;
  std::int64_t out_stride;    // elements
  const float* bias;          // [out_cols] or null
  float* partials;            // two tiles a block
  std::uint32_t* counters;    // one a block
  int num_rows, out_cols;     // of out
  int token_bytes;            // of a box of tokens: only the rows there are, others of a tile are never looked at
  int num_tiles, num_chunks;  // units: tiles of 64 weight rows, chunks of 64 k
  int num_cuts;               // blocks that the units are dealt out to
  bool float_out;
  Activation activation;  // gated only
};

// Which units a block has.
struct GemmCut {
  __device__ explicit GemmCut(const GemmArguments& args)
      : total(std::int64_t{args.num_tiles} * args.num_chunks), blocks(args.num_cuts) {}
  std::int64_t total;
  int blocks;
  __device__ int begin(int block) const { return static_cast<int>(block * total / blocks); }
  __device__ int block_of(int unit) const { return static_cast<int>(((unit + std::int64_t{1}) * blocks - 1) / total); }
};

// kRows weight rows a tile, 64 a warp group; kTokens rows of x; kBlocks that fit on a multiprocessor together.
// Gated: of each 16 weight rows of a tile 8 are gates and 8 the ups that belong to them, so one thread has both.
template <class Element, int rows, int tokens, int stages, int blocks, bool gated>
struct GemmConfig {
  using T = Element;
  static constexpr int kRows = rows, kTokens = tokens, kStages = stages, kBlocks = blocks;
  static constexpr bool kGated = gated;
  static constexpr int kGroups = kRows / 64;
  static constexpr int kThreads = 128 * kGroups + 32;
  static constexpr int kWeightBytes = kRows * 128, kStageBytes = kWeightBytes + kTokens * 128;
  static constexpr int kSharedBytes = kStages * kStageBytes + 2 * kStages * 8 + 16;
  static constexpr int kOutRows = gated ? kRows / 2 : kRows;  // columns of out that a tile makes
};

template <class C>
struct GemmShared {
  __device__ explicit GemmShared(unsigned char* base)
      : data(base),
        full(reinterpret_cast<Barrier*>(base + C::kStages * C::kStageBytes)),
        empty(full + C::kStages),
        is_last(reinterpret_cast<int*>(empty + C::kStages)) {}
  __device__ unsigned char* weights(int stage) const { return data + stage * C::kStageBytes; }
  __device__ unsigned char* tokens(int stage) const { return weights(stage) + C::kWeightBytes; }
  unsigned char* data;
  Barrier *full, *empty;
  int* is_last;
};

template <class C>
__device__ __forceinline__ void load_weights(const GemmArguments& args, const GemmShared<C>& shared, int stage,
                                             int tile, int chunk, std::uint64_t policy) {
  arrive_and_expect(&shared.full[stage], C::kWeightBytes + args.token_bytes);
  if constexpr (C::kGated)
    load_box(shared.weights(stage), &args.weights, &shared.full[stage], policy, chunk * 64, 0, 0, tile * C::kRows / 16);
  else
    load_box(shared.weights(stage), &args.weights, &shared.full[stage], policy, chunk * 64, tile * C::kRows);
}

template <class C>
__device__ __forceinline__ void load_tokens(const GemmArguments& args, const GemmShared<C>& shared, int stage,
                                            int chunk, int first_row) {
  load_box(shared.tokens(stage), &args.tokens, &shared.full[stage], kEvictLast, chunk * 64, first_row);
}

template <class C>
__device__ __forceinline__ void produce(const GemmArguments& args, const GemmShared<C>& shared, int begin, int end) {
  const int chunks = args.num_chunks, ahead = end - begin < C::kStages ? end - begin : C::kStages;
  const auto load = [&](int stage, int unit) {
    load_weights(args, shared, stage, unit / chunks, unit % chunks, kEvictFirst);
  };
  for (int i = 0; i < ahead; ++i) load(i, begin + i);
  wait_for_predecessors();
  for (int i = 0; i < ahead; ++i) load_tokens(args, shared, i, (begin + i) % chunks, 0);
  int stage = 0, parity = 0;
  for (int unit = begin + ahead; unit < end; ++unit) {
    wait(&shared.empty[stage], parity);
    load(stage, unit);
    load_tokens(args, shared, stage, unit % chunks, 0);
    if (++stage == C::kStages) stage = 0, parity ^= 1;
  }
}

__device__ __forceinline__ float activate(float x, Activation activation) {
  switch (activation) {
    case Activation::kSilu: return x / (1.0f + fast_exp(-x));
    case Activation::kGeluTanh: return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
    case Activation::kGeluErf: return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
  }
  return x;
}

// Of an 8x8 matrix of 16-bit elements lane 4g + t holds (g, 2t), (g, 2t + 1); afterwards (2t, g), (2t + 1, g).
__device__ __forceinline__ std::uint32_t transposed_pair(std::uint32_t pair, int g, int t) {
  const std::uint32_t first = shuffle(pair, 8 * t + g / 2), second = shuffle(pair, 8 * t + 4 + g / 2);
  return g % 2 == 0 ? (first & 0xffffu) | second << 16 : first >> 16 | (second & 0xffff0000u);
}

template <class T>
__device__ __forceinline__ void store_pair(const GemmArguments& args, int row, int col, std::uint32_t pair) {
  if (row < args.num_rows && col < args.out_cols)
    *reinterpret_cast<std::uint32_t*>(static_cast<T*>(args.out) + row * args.out_stride + col) = pair;
}

// d: a fragment of 16 weight rows by 8 rows of x; of out, the columns from `col` and the rows from `row`.
template <class T, bool gated>
__device__ __forceinline__ void store_fragment(const GemmArguments& args, int row, int col, const float (&bias)[2],
                                               const float (&d)[4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  if constexpr (gated) {
    const std::uint32_t pair =
        pack_pair<T>(activate(d[0], args.activation) * d[2], activate(d[1], args.activation) * d[3]);
    store_pair<T>(args, row + g, col + 2 * t, transposed_pair(pair, g, t));
  } else if (args.float_out) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at_row = row + 2 * t + i % 2, at_col = col + g + i / 2 * 8;
      if (at_row < args.num_rows && at_col < args.out_cols)
        static_cast<float*>(args.out)[at_row * args.out_stride + at_col] = d[i] + bias[i / 2];
    }
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t pair = pack_pair<T>(d[2 * i] + bias[i], d[2 * i + 1] + bias[i]);
      store_pair<T>(args, row + g, col + 8 * i + 2 * t, transposed_pair(pair, g, t));
    }
  }
}

// That of this thread's two weight rows in a fragment.
__device__ __forceinline__ void load_bias(const GemmArguments& args, int col, float (&bias)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int at = col + threadIdx.x % 32 / 4 + 8 * i;
    bias[i] = args.bias != nullptr && at < args.out_cols ? args.bias[at] : 0.0f;
  }
}

// sums: D's fragment of this warp group, rows of D being weight rows and columns rows of x.
template <class C>
__device__ __forceinline__ void store_tile(const GemmArguments& args, int first_row, int tile, int group,
                                           float (&sums)[C::kTokens / 2]) {
  const int col = tile * C::kOutRows + (group * 4 + static_cast<int>(threadIdx.x / 32 % 4)) * (C::kGated ? 8 : 16);
  float bias[2];
  load_bias(args, col, bias);
#pragma unroll
  for (int j = 0; j < C::kTokens / 8; ++j) {
    if (first_row + 8 * j >= args.num_rows) break;
    const float d[4] = {sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]};
    store_fragment<typename C::T, C::kGated>(args, first_row + 8 * j, col, bias, d);
  }
}

// Of a cut tile: leaves this block's part in memory; true, with the sum over all parts in `sums`, in the warp group
// that comes last.
template <class C>
__device__ __forceinline__ bool sum_parts(const GemmArguments& args, const GemmShared<C>& shared, const GemmCut& cut,
                                          int tile, float (&sums)[C::kTokens / 2]) {
  const int block = blockIdx.x, thread = threadIdx.x, tile_begin = tile * args.num_chunks;
  const int first = cut.block_of(tile_begin), last = cut.block_of(tile_begin + args.num_chunks - 1);
  const auto part_of = [&](int of_block) {
    const int side = tile_begin > cut.begin(of_block) ? 1 : 0;
    return args.partials + (2 * std::int64_t{of_block} + side) * (64 * C::kTokens);
  };
  float* mine = part_of(block);
#pragma unroll
  for (int j = 0; j < C::kTokens / 8; ++j)
    store_vec(mine + (j * 128 + thread) * 4,
              Vec<float, 4>{sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]});
  thread_fence();
  sync_threads(1, 128);
  if (thread == 0) {
    std::uint32_t* counter = &args.counters[first];
    *shared.is_last = atomic_add(counter, 1u) == static_cast<std::uint32_t>(last - first);
    if (*shared.is_last) *counter = 0;
  }
  sync_threads(1, 128);
  if (!*shared.is_last) return false;
  thread_fence();
#pragma unroll
  for (int j = 0; j < C::kTokens / 2; ++j) sums[j] = 0.0f;
  for (int of_block = first; of_block <= last; ++of_block) {
    const float* part = part_of(of_block);
#pragma unroll
    for (int j = 0; j < C::kTokens / 8; ++j) {
      const Vec<float, 4> more = load_vec<float, 4>(part + (j * 128 + thread) * 4);
      for (int i = 0; i < 4; ++i) sums[4 * j + i] += more.data[i];
    }
  }
  return true;
}

// Starts sums (+)= weights x tokens of a stage.
template <class C>
__device__ __forceinline__ void multiply_stage(const GemmShared<C>& shared, int stage, int group,
                                               float (&sums)[C::kTokens / 2], bool is_first) {
  const std::uint64_t a = k_major_descriptor(shared.weights(stage) + group * 64 * 128);
  const std::uint64_t b = k_major_descriptor(shared.tokens(stage));
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) wgmma<typename C::T, false>(sums, a + 2 * k, b + 2 * k, !is_first || k != 0);
  wgmma_commit();
}

template <class C>
__device__ __forceinline__ void consume(const GemmArguments& args, const GemmShared<C>& shared, const GemmCut& cut,
                                        int begin, int end) {
  const bool signals = threadIdx.x % 128 == 0;
  float sums[C::kTokens / 2];
  int stage = 0, parity = 0, unit = begin;
  while (unit < end) {
    const int tile = unit / args.num_chunks, tile_end = (tile + 1) * args.num_chunks;
    const int segment_end = tile_end < end ? tile_end : end, segment = unit;
    int previous = 0;
    for (; unit < segment_end; ++unit) {
      wait(&shared.full[stage], parity);
      multiply_stage(shared, stage, 0, sums, unit == segment);
      if (unit != segment) {
        wgmma_wait<1>();
        if (signals) arrive(&shared.empty[previous]);
      }
      previous = stage;
      if (++stage == C::kStages) stage = 0, parity ^= 1;
    }
    wgmma_wait<0>();
    if (signals) arrive(&shared.empty[previous]);
    hold(sums);
    if (segment == tile_end - args.num_chunks && segment_end == tile_end) {
#pragma unroll
      for (int i = 0; i < C::kTokens / 2; ++i) sums[i] += 0.0f;  // as a sum over parts does: no -0
    } else if (!sum_parts(args, shared, cut, tile, sums)) {
      continue;
    }
    store_tile<C>(args, 0, tile, 0, sums);
  }
}

// By all threads, first of all.
template <class C>
__device__ __forceinline__ void begin_gemm(const GemmArguments& args, const GemmShared<C>& shared) {
  if (threadIdx.x == 128 * C::kGroups) {
    prefetch_tensor_map(&args.weights);
    prefetch_tensor_map(&args.tokens);
    for (int i = 0; i < C::kStages; ++i) {
      init_barrier(&shared.full[i], 1);
      init_barrier(&shared.empty[i], C::kGroups);
    }
    fence_barrier_init();
  }
  __syncthreads();
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocks)
    gemm_sm90_kernel(const __grid_constant__ GemmArguments args) {
#if PAGED_SM90A
  static_assert(C::kGroups == 1);
  release_dependents();
  GPU_DYN_SHARED(unsigned char, base);
  const GemmShared<C> shared(base);
  begin_gemm(args, shared);
  const GemmCut cut(args);
  const int begin = cut.begin(blockIdx.x), end = cut.begin(blockIdx.x + 1);
  if (threadIdx.x >= 128 * C::kGroups) {
    if (threadIdx.x == 128 * C::kGroups) produce(args, shared, begin, end);
    return;
  }
  wait_for_predecessors();
  consume(args, shared, cut, begin, end);
#endif
}

}  // namespace paged::gpu

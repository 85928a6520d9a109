// SPDX-License-Identifier: Apache-2.0
// out[m, n] = x[m, :] . weight[n, :] for few rows m and matrices of few rows a multiprocessor: each block makes one
// slab of weight rows over all of k, so that blocks need not meet, and a product is next to its launch's latency. Its
// first ring of weights, often all of them, is on its way before the wait for the previous kernel.
//
// A slab is `units` of 16 weight rows (gated: 8 gates and their 8 ups). The ring has slots of 64 k. Warps share the
// work as warps_down (rows) x warps_k (every warps_k-th slot); the parts of k are added up in order at the end.
#pragma once

#include <ptx_sm90.h>

#include "cuda/gemm_sm90_fragment.cuh"
#include "gpu/gpu.h"

namespace paged::gpu {

struct SlabArguments {
  TensorMap weights, tokens;
  void* out;
  std::int64_t out_stride;  // elements
  const float* bias;        // [out_cols] or null
  int num_rows, out_cols;   // of out
  int token_bytes;          // of a box of tokens: only the rows there are, others of a tile are never looked at
  int num_chunks;           // of 64 k
  bool float_out;
  Activation activation;  // gated only
};

struct SlabShape {
  int units, slots, warps_down, warps_k;
  int loaders;     // lanes that refill slots, at most as many as slots
  int ring_bytes;  // of the slots, and later of the parts
};

// kUnits: what one warp keeps sums of, at most.
template <class Element, int tokens, int units, bool gated>
struct SlabConfig {
  using T = Element;
  static constexpr int kTokens = tokens, kUnits = units, kColumns = tokens / 8;
  static constexpr bool kGated = gated;
  static constexpr int kWarps = 8, kThreads = 32 * kWarps + 32;
};

template <class C>
struct SlabRing {
  __device__ SlabRing(unsigned char* base, const SlabShape& shape)
      : data(base),
        weight_bytes(shape.units * 2048),
        slot_bytes(weight_bytes + C::kTokens * 128),
        full(reinterpret_cast<Barrier*>(base + shape.ring_bytes)),
        empty(full + shape.slots) {}
  __device__ unsigned char* weights(int slot) const { return data + slot * slot_bytes; }
  __device__ unsigned char* tokens(int slot) const { return weights(slot) + weight_bytes; }
  unsigned char* data;
  int weight_bytes, slot_bytes;
  Barrier *full, *empty;
};

template <class C>
__device__ __forceinline__ void load_slab_weights(const SlabArguments& args, const SlabShape& shape,
                                                  const SlabRing<C>& ring, int slot, int chunk) {
  const int first = static_cast<int>(blockIdx.x) * shape.units;
  arrive_and_expect(&ring.full[slot], ring.weight_bytes + args.token_bytes);
  if constexpr (C::kGated)
    load_box(ring.weights(slot), &args.weights, &ring.full[slot], kEvictFirst, chunk * 64, 0, 0, first);
  else
    load_box(ring.weights(slot), &args.weights, &ring.full[slot], kEvictFirst, chunk * 64, first * 16);
}

// By a whole warp: its lanes start the first ring together; a few go on, as one alone is too slow for small slots.
template <class C>
__device__ __forceinline__ void produce_slab(const SlabArguments& args, const SlabShape& shape,
                                             const SlabRing<C>& ring) {
  const int lane = threadIdx.x % 32, ahead = shape.slots < args.num_chunks ? shape.slots : args.num_chunks;
  const auto load_tokens = [&](int slot, int chunk) {
    load_box(ring.tokens(slot), &args.tokens, &ring.full[slot], kEvictLast, chunk * 64, 0);
  };
  for (int i = lane; i < ahead; i += 32) load_slab_weights(args, shape, ring, i, i);
  wait_for_predecessors();
  for (int i = lane; i < ahead; i += 32) load_tokens(i, i);
  if (lane >= shape.loaders) return;
  int slot = lane, parity = 0;
  for (int chunk = ahead + lane; chunk < args.num_chunks; chunk += shape.loaders) {
    wait(&ring.empty[slot], parity);
    load_slab_weights(args, shape, ring, slot, chunk);
    load_tokens(slot, chunk);
    slot += shape.loaders;
    if (slot >= shape.slots) slot -= shape.slots, parity ^= 1;
  }
}

// This lane's address of a row of 8 k, the `chunk`-th of 64, in a swizzled tile.
__device__ __forceinline__ const unsigned char* swizzled_row(const unsigned char* tile, int row, int chunk) {
  return tile + row * 128 + (chunk ^ row % 8) * 16;
}

// The tokens' fragments of 16 k, or, where there are but 8 tokens, of 32 at every other step.
template <int columns>
__device__ __forceinline__ void load_token_fragments(std::uint32_t (&b)[columns][2], std::uint32_t (&pair)[4],
                                                     const unsigned char* tokens, int step) {
  const int matrix = threadIdx.x % 32 / 8, r = threadIdx.x % 8;
  if constexpr (columns == 1) {
    if (step % 2 == 0) load_matrices(pair, swizzled_row(tokens, r, 2 * step + matrix));
    b[0][0] = pair[step % 2 * 2];
    b[0][1] = pair[step % 2 * 2 + 1];
  } else {
#pragma unroll
    for (int j = 0; j < columns; j += 2) {
      load_matrices(pair, swizzled_row(tokens, 8 * (j + matrix / 2) + r, 2 * step + matrix % 2));
      b[j][0] = pair[0], b[j][1] = pair[1], b[j + 1][0] = pair[2], b[j + 1][1] = pair[3];
    }
  }
}

// sums += the warp's units of a slot x its tokens; `units`: how many it has.
template <class C>
__device__ __forceinline__ void multiply_slot(const unsigned char* weights, const unsigned char* tokens, int units,
                                              float (&sums)[C::kUnits][C::kColumns][4]) {
  const int matrix = threadIdx.x % 32 / 8, r = threadIdx.x % 8;
  std::uint32_t b[C::kColumns][2], pair[4];
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    load_token_fragments(b, pair, tokens, step);
#pragma unroll
    for (int unit = 0; unit < C::kUnits; ++unit) {
      if (unit >= units) break;
      std::uint32_t a[4];
      load_matrices(a, swizzled_row(weights, 16 * unit + matrix % 2 * 8 + r, 2 * step + matrix / 2));
#pragma unroll
      for (int j = 0; j < C::kColumns; ++j) mma_16x8x16<typename C::T>(sums[unit][j], a, b[j]);
    }
  }
}

// Adds up the warps' parts of k, and stores.
template <class C>
__device__ __forceinline__ void store_slab(const SlabArguments& args, const SlabShape& shape, const float* parts) {
  const int lane = threadIdx.x % 32, items = shape.units * C::kColumns;
  for (int item = threadIdx.x / 32; item < items; item += C::kWarps) {
    const int unit = static_cast<int>(blockIdx.x) * shape.units + item / C::kColumns, row = item % C::kColumns * 8;
    if (row >= args.num_rows) continue;
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int part = 0; part < shape.warps_k; ++part) {
      const Vec<float, 4> more = load_vec<float, 4>(parts + ((part * items + item) * 32 + lane) * 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] += more.data[i];
    }
    if constexpr (C::kGated) {
      with_activation(args.activation, [&](auto activation) {
        store_gated_fragment<typename C::T, decltype(activation)::value>(args, row, args.num_rows, unit * 8, sums);
      });
    } else {
      float bias[2];
      load_bias(args, unit * 16, bias);
      store_fragment<typename C::T>(args, row, args.num_rows, unit * 16, bias, sums);
    }
  }
}

template <class C>
__device__ __forceinline__ void consume_slab(const SlabArguments& args, const SlabShape& shape,
                                             const SlabRing<C>& ring) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int down = warp % shape.warps_down, k_warp = warp / shape.warps_down;
  const int first_unit = down * C::kUnits, left = shape.units - first_unit;
  const int units = left < C::kUnits ? left : C::kUnits;
  float sums[C::kUnits][C::kColumns][4] = {};
  if (k_warp < shape.warps_k) {
    int slot = k_warp, parity = 0;
    for (int chunk = k_warp; chunk < args.num_chunks; chunk += shape.warps_k) {
      for (; slot >= shape.slots; slot -= shape.slots) parity ^= 1;
      wait(&ring.full[slot], parity);
      multiply_slot<C>(ring.weights(slot) + first_unit * 2048, ring.tokens(slot), units, sums);
      sync_warp();
      if (lane == 0) arrive(&ring.empty[slot]);
      slot += shape.warps_k;
    }
  }
  sync_threads(1, 32 * C::kWarps);  // the ring is empty: the parts take its place
  float* parts = reinterpret_cast<float*>(ring.data);
  if (k_warp < shape.warps_k) {
#pragma unroll
    for (int unit = 0; unit < C::kUnits; ++unit) {
      if (unit >= units) break;
#pragma unroll
      for (int j = 0; j < C::kColumns; ++j) {
        const float (&d)[4] = sums[unit][j];
        const int item = (k_warp * shape.units + first_unit + unit) * C::kColumns + j;
        store_vec(parts + (item * 32 + lane) * 4, Vec<float, 4>{d[0], d[1], d[2], d[3]});
      }
    }
  }
  sync_threads(1, 32 * C::kWarps);
  store_slab<C>(args, shape, parts);
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, 2)
    gemm_sm90_slab_kernel(const __grid_constant__ SlabArguments args, const SlabShape shape) {
#if PAGED_SM90A
  release_dependents();
  GPU_DYN_SHARED(unsigned char, base);
  const SlabRing<C> ring(base, shape);
  constexpr int kLoader = 32 * C::kWarps;
  if (threadIdx.x == kLoader) {
    prefetch_tensor_map(&args.weights);
    prefetch_tensor_map(&args.tokens);
    for (int i = 0; i < shape.slots; ++i) {
      init_barrier(&ring.full[i], 1);
      init_barrier(&ring.empty[i], shape.warps_down);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x >= kLoader) return produce_slab(args, shape, ring);
  wait_for_predecessors();
  consume_slab(args, shape, ring);
#endif
}

}  // namespace paged::gpu

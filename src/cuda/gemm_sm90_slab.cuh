// SPDX-License-Identifier: Apache-2.0
// out[m, n] = x[m, :] . weight[n, :] for few rows m and matrices of few rows a multiprocessor: each block makes one
// slab of weight rows over all of k, so that blocks need not meet, and a product is next to its launch's latency. Its
// first ring of weights, often all of them, is on its way before the wait for the previous kernel. With as many warps
// down k as tiles (gemm_sm90_tile.cuh) have parts, and the same parts, it gives the bits that they give.
//
// A slab is `units` of 16 weight rows (gated: 8 gates and their 8 ups). The ring has slots of 64 k. Warps share the
// work as warps_down (rows) x warps_k (every warps_k-th slot); the parts of k are added up in order at the end.
#pragma once

#include <ptx_sm90.h>

#include "cuda/gemm_sm90_ahead.cuh"
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
  int runs;                 // contiguous parts of k, equal ones, which take turns in the ring
  bool float_out;
  Activation activation;  // gated only
};

struct SlabShape {
  int units, slots, warps_down, warps_k;
  int pace;        // of load_ahead(), for the weights of a slot
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

// Of the i-th chunk in the ring, in elements.
__device__ __forceinline__ int first_k_of(const SlabArguments& args, int i) {
  const int chunk = args.runs == 1 ? i : i % args.runs * (args.num_chunks / args.runs) + i / args.runs;
  return chunk * 64;
}

template <class C>
__device__ __forceinline__ void load_slab_weights(const SlabArguments& args, const SlabShape& shape,
                                                  const SlabRing<C>& ring, int slot, int chunk) {
  const int first = static_cast<int>(blockIdx.x) * shape.units;
  arrive_and_expect(&ring.full[slot], ring.weight_bytes + args.token_bytes);
  if constexpr (C::kGated)
    load_box(ring.weights(slot), &args.weights, &ring.full[slot], kEvictFirst, first_k_of(args, chunk), 0, 0, first);
  else
    load_box(ring.weights(slot), &args.weights, &ring.full[slot], kEvictFirst, first_k_of(args, chunk), first * 16);
}

// By a whole warp, of which a few lanes go on after the first ring, as one alone is too slow for small slots.
template <class C>
__device__ __forceinline__ void produce_slab(const SlabArguments& args, const SlabShape& shape,
                                             const SlabRing<C>& ring) {
  const int lane = threadIdx.x % 32, ahead = shape.slots < args.num_chunks ? shape.slots : args.num_chunks;
  const auto load_tokens = [&](int slot, int chunk) {
    load_box(ring.tokens(slot), &args.tokens, &ring.full[slot], kEvictLast, first_k_of(args, chunk), 0);
  };
  load_ahead(ahead, shape.pace, [&](int i) { load_slab_weights(args, shape, ring, i, i); });
  wait_for_predecessors();
  for (int i = lane; i < ahead; i += 32) load_tokens(i, i);
  if (lane >= shape.loaders) return;
  int slot = lane, parity = 0;
  for (int chunk = ahead + lane; chunk < args.num_chunks; chunk += shape.loaders) {
    if constexpr (C::kTokens <= 8)
      spin(&ring.empty[slot], parity);
    else
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

// One unit of a slot and its 8 tokens in registers.
template <class C>
struct SlotFragments {
  std::uint32_t weights[4][4], tokens[2][4];

  __device__ __forceinline__ void load(const unsigned char* unit, const unsigned char* rows) {
    const int matrix = threadIdx.x % 32 / 8, r = threadIdx.x % 8;
#pragma unroll
    for (int i = 0; i < 2; ++i) load_matrices(tokens[i], swizzled_row(rows, r, 4 * i + matrix));
#pragma unroll
    for (int step = 0; step < 4; ++step)
      load_matrices(weights[step], swizzled_row(unit, matrix % 2 * 8 + r, 2 * step + matrix / 2));
  }
  __device__ __forceinline__ void multiply(float (&sums)[4]) const {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const std::uint32_t b[2] = {tokens[step / 2][step % 2 * 2], tokens[step / 2][step % 2 * 2 + 1]};
      mma_16x8x16<typename C::T>(sums, weights[step], b);
    }
  }
};

// Where a warp is in the ring.
struct SlabPlace {
  int slot, parity;
  __device__ __forceinline__ void move(int slots, const SlabShape& shape) {
    slot += slots;
    for (; slot >= shape.slots; slot -= shape.slots) parity ^= 1;
  }
};

// All of a warp's slots.
template <class C>
__device__ __forceinline__ void multiply_slots(const SlabArguments& args, const SlabShape& shape,
                                               const SlabRing<C>& ring, int first_unit, int units, int k_warp,
                                               float (&sums)[C::kUnits][C::kColumns][4]) {
  SlabPlace place{0, 0};
  place.move(k_warp, shape);
  for (int chunk = k_warp; chunk < args.num_chunks; chunk += shape.warps_k) {
    wait(&ring.full[place.slot], place.parity);
    multiply_slot<C>(ring.weights(place.slot) + first_unit * 2048, ring.tokens(place.slot), units, sums);
    sync_warp();
    if (threadIdx.x % 32 == 0) arrive(&ring.empty[place.slot]);
    place.move(shape.warps_k, shape);
  }
}

// The same for one unit of eight tokens, where all is one chain of sums: the fragments of the next slot are on their
// way while one is multiplied.
template <class C>
__device__ __forceinline__ void multiply_chain(const SlabArguments& args, const SlabShape& shape,
                                               const SlabRing<C>& ring, int first_unit, int k_warp, float (&sums)[4]) {
  SlabPlace place{0, 0};
  place.move(k_warp, shape);
  const auto load = [&](SlotFragments<C>& to) {
    wait(&ring.full[place.slot], place.parity);
    to.load(ring.weights(place.slot) + first_unit * 2048, ring.tokens(place.slot));
  };
  SlotFragments<C> fragments[2];
  int chunk = k_warp;
  if (chunk < args.num_chunks) load(fragments[0]);
  const auto turn = [&](const SlotFragments<C>& now, SlotFragments<C>& next) {
    const int slot = place.slot;
    chunk += shape.warps_k;
    place.move(shape.warps_k, shape);
    if (chunk < args.num_chunks) load(next);
    now.multiply(sums);
    sync_warp();
    if (threadIdx.x % 32 == 0) arrive(&ring.empty[slot]);
  };
  while (chunk < args.num_chunks) {
    turn(fragments[0], fragments[1]);
    if (chunk < args.num_chunks) turn(fragments[1], fragments[0]);
  }
}

// Adds up the warps' parts of k, and stores.
template <class C>
__device__ __forceinline__ void store_slab(const SlabArguments& args, const SlabShape& shape, const float* parts) {
  const int lane = threadIdx.x % 32, items = shape.units * C::kColumns;
  for (int item = threadIdx.x / 32; item < items; item += C::kWarps) {
    const int unit = static_cast<int>(blockIdx.x) * shape.units + item / C::kColumns, row = item % C::kColumns * 8;
    if (row >= args.num_rows) continue;
    const Vec<float, 4> begin = load_vec<float, 4>(parts + (item * 32 + lane) * 4);
    float sums[4] = {begin.data[0], begin.data[1], begin.data[2], begin.data[3]};
    for (int part = 1; part < shape.warps_k; ++part) {
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
    if constexpr (C::kUnits == 1 && C::kColumns == 1)
      multiply_chain<C>(args, shape, ring, first_unit, k_warp, sums[0][0]);
    else
      multiply_slots<C>(args, shape, ring, first_unit, units, k_warp, sums);
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

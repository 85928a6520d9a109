// SPDX-License-Identifier: Apache-2.0
// out[m, n] = x[m, :] . weight[n, :] on Hopper, for more rows m than a slab takes: the weights are streamed at the rate
// of the memory while there are some hundred rows, and beyond at that of the tensor cores. A block makes tiles of up to
// kTokens rows of x by kWeights weight rows. Its first ring of weights is on its way before the wait for the previous
// kernel.
//
// A small matrix has fewer tiles than a chip has multiprocessors: there the blocks of a cluster make one together, each
// with its part of k. The parts are added through the shared memory of one another.
//
// The bits of a row depend on the number of parts alone: k is summed in ascending order within each, whichever operand
// is the left one.
#pragma once

#include <ptx_cluster.h>
#include <ptx_sm90.h>

#include "cuda/gemm_sm90_ahead.cuh"
#include "cuda/gemm_sm90_fragment.cuh"
#include "gpu/gpu.h"

namespace paged::gpu {

struct TileArguments {
  TensorMap weights, tokens;
  void* out;
  std::int64_t out_stride;      // elements
  const float* bias;            // [out_cols] or null
  int num_rows, out_cols;       // of out
  int tile_rows;                // rows of x in a tile, a multiple of 8: only those are loaded, and looked at
  int row_tiles, weight_tiles;  // the latter for each block of a cluster that shares x
  int num_chunks;               // of 64 k
  int stages;
  int pace;                     // of load_ahead(), for the weights of a stage
  bool float_out, float_pairs;  // float32; two at a time
  Activation activation;        // gated only
};

constexpr int kParts = 2;  // of k, where a cluster makes a tile

// Gated: of each 16 weight rows of a tile 8 are gates and 8 the ups that belong to them, so one thread has both.
// Split: a cluster makes a tile. Swapped: the weights are the matrix unit's left operand, of which it takes 64 rows at
// a time, and x the right one, of which it takes as many as there are up to 256: for more rows than 128. Sharers:
// blocks of a cluster that make neighbouring tiles of the same rows of x and load a part of these each, for all.
template <class Element, int tokens, int weights, bool gated, bool split, bool swapped = false, int sharers = 1>
struct TileConfig {
  static_assert(!split || sharers == 1, "a cluster is for one thing");
  static constexpr int kSharers = sharers < kMaxCluster ? sharers : kMaxCluster;
  using T = Element;
  static constexpr int kTokens = tokens, kWeights = weights;
  static constexpr bool kGated = gated, kSplit = split, kSwapped = swapped;
  static constexpr int kGroups = (swapped ? kWeights : kTokens) / 64;  // of four warps, 64 rows of the left each
  static constexpr int kThreads = 128 * kGroups + 64;
  static constexpr int kSums = (swapped ? kTokens : kWeights) / 2;  // of a thread
  static constexpr int kStored = gated && !swapped ? 8 : 4;         // of those, what is stored at a time
  static constexpr int kOutCols = gated ? kWeights / 2 : kWeights;
  static constexpr int kChunks = kWeights <= 64 ? 2 : 1;  // of a stage: waiting takes as long as multiplying a few rows
};

// The rows of x in a stage are those there are; wgmma reads on into what follows, and nobody looks at what it makes of
// that. So there is room for kTokens rows after the last stage.
template <class C>
struct TileRing {
  __device__ TileRing(unsigned char* base, const TileArguments& args)
      : data(base + 1024),
        token_bytes(args.tile_rows * 128),
        chunk_bytes(token_bytes + C::kWeights * 128),
        full(reinterpret_cast<Barrier*>(base)),
        empty(full + args.stages) {}
  __device__ unsigned char* tokens(int stage, int chunk) const {
    return data + (stage * C::kChunks + chunk) * chunk_bytes;
  }
  __device__ unsigned char* weights(int stage, int chunk) const { return tokens(stage, chunk) + token_bytes; }
  unsigned char* data;
  int token_bytes, chunk_bytes;
  Barrier *full, *empty;
};

struct Tile {
  int row_tile, weight_tile;
};

// This block's tiles, and what of k is its own. Tiles are in an order that keeps in L2 what neighbours in time read:
// bands of kBand weight tiles by all rows of x.
template <class C>
struct TileShare {
  static constexpr int kBand = 8;
  __device__ explicit TileShare(const TileArguments& args)
      : row_tiles(args.row_tiles),
        weight_tiles(args.weight_tiles),
        part(C::kSplit ? static_cast<int>(blockIdx.x) % kParts : 0),
        sharer(C::kSharers > 1 ? static_cast<int>(blockIdx.x) % C::kSharers : 0),
        first(static_cast<int>(blockIdx.x) / cluster()),
        step(static_cast<int>(gridDim.x) / cluster()),
        count(row_tiles * weight_tiles),
        first_chunk(C::kSplit ? first_of(part, args) : 0),
        num_stages(((C::kSplit ? first_of(part + 1, args) : args.num_chunks) - first_chunk + C::kChunks - 1) /
                   C::kChunks) {}
  __device__ Tile tile(int index) const {
    const int band = index / (kBand * row_tiles), in_band = index % (kBand * row_tiles);
    const int left = weight_tiles - band * kBand, width = left < kBand ? left : kBand;
    return {in_band / width, (band * kBand + in_band % width) * C::kSharers + sharer};
  }
  int row_tiles, weight_tiles;  // weight_tiles: of a whole cluster
  int part, sharer, first, step, count, first_chunk;
  int num_stages;  // that a tile takes

 private:
  static __device__ int cluster() { return C::kSplit ? kParts : C::kSharers; }
  // Parts begin at even chunks, whatever a stage holds.
  static __device__ int first_of(int part, const TileArguments& args) {
    return 2 * (part * ((args.num_chunks + 1) / 2) / kParts);
  }
};

template <class C>
__device__ __forceinline__ void load_tile_weights(const TileArguments& args, const TileRing<C>& ring, int stage,
                                                  int weight_tile, int chunk) {
  const std::uint64_t policy = args.row_tiles > 1 ? kEvictNormal : kEvictFirst;
  arrive_and_expect(&ring.full[stage], C::kChunks * ring.chunk_bytes);
#pragma unroll
  for (int i = 0; i < C::kChunks; ++i) {
    if constexpr (C::kGated)
      load_box(ring.weights(stage, i), &args.weights, &ring.full[stage], policy, (chunk + i) * 64, 0, 0,
               weight_tile * (C::kWeights / 16));
    else
      load_box(ring.weights(stage, i), &args.weights, &ring.full[stage], policy, (chunk + i) * 64,
               weight_tile * C::kWeights);
  }
}

template <class C>
__device__ __forceinline__ void load_tile_tokens(const TileArguments& args, const TileRing<C>& ring, int sharer,
                                                 int stage, int row_tile, int chunk) {
  const int rows = args.tile_rows / C::kSharers, first = sharer * rows;
#pragma unroll
  for (int i = 0; i < C::kChunks; ++i) {
    unsigned char* to = ring.tokens(stage, i) + first * 128;
    const int k = (chunk + i) * 64, row = row_tile * args.tile_rows + first;
    if constexpr (C::kSharers > 1)
      load_box_everywhere(C::kSharers, to, &args.tokens, &ring.full[stage], kEvictLast, k, row);
    else
      load_box(to, &args.tokens, &ring.full[stage], kEvictLast, k, row);
  }
}

// By a whole warp: load(stage, tile, chunk) for all of this block's tiles, each as soon as the stage is free. The first
// ones are free, and loaded at a pace.
template <class C, class Load>
__device__ __forceinline__ void fill_ring(const TileArguments& args, const TileShare<C>& share, const TileRing<C>& ring,
                                          int pace, const Load& load) {
  const int ahead = share.num_stages < args.stages ? share.num_stages : args.stages;
  load_ahead(ahead, pace, [&](int i) { load(i, share.tile(share.first), share.first_chunk + i * C::kChunks); });
  if (threadIdx.x % 32 != 0) return;
  int stage = ahead == args.stages ? 0 : ahead, parity = ahead == args.stages ? 0 : 1, begin = ahead;
  for (int index = share.first; index < share.count; index += share.step) {
    const Tile tile = share.tile(index);
    for (int i = begin; i < share.num_stages; ++i) {
      wait(&ring.empty[stage], parity);
      load(stage, tile, share.first_chunk + i * C::kChunks);
      if (++stage == args.stages) stage = 0, parity ^= 1;
    }
    begin = 0;
  }
}

// d: of rows `row` + lane / 4 and + 8, columns `col` + 2 (lane % 4) and the next; `end`: of the rows to be stored.
template <class C>
__device__ __forceinline__ void store_rows(const TileArguments& args, int row, int end, int col, const float (&d)[4]) {
  const int g = threadIdx.x % 32 / 4, at_col = col + 2 * (threadIdx.x % 4);
  if (at_col >= args.out_cols) return;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int at_row = row + g + 8 * i;
    if (at_row >= end) continue;
    const std::int64_t at = at_row * args.out_stride + at_col;
    if (!args.float_out) {
      *reinterpret_cast<std::uint32_t*>(static_cast<typename C::T*>(args.out) + at) =
          pack_pair<typename C::T>(d[2 * i], d[2 * i + 1]);
      continue;
    }
    float* out = static_cast<float*>(args.out) + at;
    if (args.float_pairs) {
      store_vec(out, Vec<float, 2>{d[2 * i], d[2 * i + 1]});
    } else {
      out[0] = d[2 * i];
      if (at_col + 1 < args.out_cols) out[1] = d[2 * i + 1];
    }
  }
}

// The sums of 8 weight rows; gated: 8 gates and, in the next 4, their ups.
template <class C, Activation activation>
__device__ __forceinline__ void store_sums(const TileArguments& args, int row, int end, int col,
                                           const float (&sums)[C::kStored]) {
  if constexpr (C::kGated) {
    float d[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] = activate<activation>(sums[i]) * sums[4 + i];
    store_rows<C>(args, row, end, col, d);
  } else {
    const int first = col + 2 * static_cast<int>(threadIdx.x % 4);
    const float b0 = args.bias != nullptr && first < args.out_cols ? args.bias[first] : 0.0f;
    const float b1 = args.bias != nullptr && first + 1 < args.out_cols ? args.bias[first + 1] : 0.0f;
    store_rows<C>(args, row, end, col, {sums[0] + b0, sums[1] + b1, sums[2] + b0, sums[3] + b1});
  }
}

template <class C>
struct TileConsumer {
  static constexpr int kStored = C::kStored, kItems = C::kSums / kStored;
  const TileArguments& args;
  const TileShare<C>& share;
  const TileRing<C>& ring;

  __device__ void run() const {
    int stage = 0, parity = 0;
    float sums[C::kSums];
    for (int index = share.first; index < share.count; index += share.step) {
      multiply(stage, parity, sums);
      Place place = place_of(share.tile(index));
      if constexpr (C::kSwapped && !C::kGated) load_bias(args, place.col, place.bias);
      if constexpr (C::kSplit)
        store_parts(place, sums);
      else if constexpr (C::kGated)
        with_activation(args.activation, [&](auto activation) { store_all<decltype(activation)::value>(place, sums); });
      else
        store_all<Activation::kSilu>(place, sums);
    }
  }

 private:
  // Of out, where this warp's first item belongs, and the first row that it may not store.
  struct Place {
    int row, end, col;
    float bias[2];  // swapped only
  };
  __device__ Place place_of(const Tile& tile) const {
    const int warp = static_cast<int>(threadIdx.x / 32);
    const int first = tile.row_tile * args.tile_rows, end = first + args.tile_rows;
    return {first + (C::kSwapped ? 0 : 16 * warp),
            end < args.num_rows ? end : args.num_rows,
            tile.weight_tile * C::kOutCols + (C::kSwapped ? warp * (C::kGated ? 8 : 16) : 0),
            {}};
  }

  __device__ void release(int stage) const {
    if constexpr (C::kSharers > 1) {
      if (threadIdx.x % 128 < C::kSharers) arrive_at_rank(&ring.empty[stage], threadIdx.x % 128);
    } else {
      if (threadIdx.x % 128 == 0) arrive(&ring.empty[stage]);
    }
  }

  __device__ void multiply(int& stage, int& parity, float (&sums)[C::kSums]) const {
    const int group_rows = static_cast<int>(threadIdx.x / 128) * (64 * 128);
    int previous = 0;
    for (int i = 0; i < share.num_stages; ++i) {
      wait(&ring.full[stage], parity);
      wgmma_fence();
#pragma unroll
      for (int chunk = 0; chunk < C::kChunks; ++chunk) {
        const unsigned char *left = ring.tokens(stage, chunk), *right = ring.weights(stage, chunk);
        const std::uint64_t a = k_major_descriptor((C::kSwapped ? right : left) + group_rows);
        const std::uint64_t b = k_major_descriptor(C::kSwapped ? left : right);
#pragma unroll
        for (int k = 0; k < 4; ++k)
          wgmma<typename C::T, false>(sums, a + 2 * k, b + 2 * k, i != 0 || chunk != 0 || k != 0);
      }
      wgmma_commit();
      if (i != 0) {
        wgmma_wait<1>();
        release(previous);
      }
      previous = stage;
      if (++stage == args.stages) stage = 0, parity ^= 1;
    }
    wgmma_wait<0>();
    release(previous);
    hold(sums);
  }

  template <Activation activation>
  __device__ void store_item(const Place& place, int item, const float (&sums)[kStored]) const {
    const int row = place.row + (C::kSwapped ? 8 * item : 0), col = place.col + (C::kSwapped ? 0 : 8 * item);
    if (row >= place.end) return;
    if constexpr (!C::kSwapped)
      store_sums<C, activation>(args, row, place.end, col, sums);
    else if constexpr (C::kGated)
      store_gated_fragment<typename C::T, activation>(args, row, place.end, col, sums);
    else
      store_fragment<typename C::T>(args, row, place.end, col, place.bias, sums);
  }

  template <Activation activation>
  __device__ void store_all(const Place& place, const float (&sums)[C::kSums]) const {
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
      float stored[kStored];
#pragma unroll
      for (int i = 0; i < kStored; ++i) stored[i] = sums[item * kStored + i];
      store_item<activation>(place, item, stored);
    }
  }

  // The ring is empty for good: what the other block stores takes its place. Each stores every other item.
  __device__ void store_parts(const Place& place, const float (&sums)[C::kSums]) const {
    constexpr int kMine = kItems / kParts, kBatch = kMine > 8 ? kMine / 2 : kMine, kStride = 128 * C::kGroups * 4;
    static_assert(kParts == 2 && kStored == 4 && kItems % 2 == 0 && kMine % kBatch == 0);
    float* shared = reinterpret_cast<float*>(ring.data) + threadIdx.x * 4;
    const bool is_first = share.part == 0;
    sync_threads(1, 128 * C::kGroups);
#pragma unroll
    for (int i = 0; i < kMine; ++i) store_vec(shared + i * kStride, item_of(sums, 2 * i, !is_first));
    sync_cluster();
#pragma unroll
    for (int first = 0; first < kMine; first += kBatch) {
      Vec<float, 4> others[kBatch];  // on their way all at once
#pragma unroll
      for (int i = 0; i < kBatch; ++i) others[i] = load_from_rank(shared + (first + i) * kStride, 1 - share.part);
      if (first + kBatch == kMine) arrive_at_cluster();
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const Vec<float, 4> own = item_of(sums, 2 * (first + i), is_first);
        float stored[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) stored[e] = own.data[e] + others[i].data[e];
        store_item<Activation::kSilu>(place, 2 * (first + i) + share.part, stored);  // gates are not split
      }
    }
    wait_for_cluster();  // nobody leaves while others still read
  }

  // That item of two neighbours.
  static __device__ Vec<float, 4> item_of(const float (&sums)[C::kSums], int pair, bool is_first) {
    Vec<float, 4> item;
#pragma unroll
    for (int e = 0; e < 4; ++e) item.data[e] = is_first ? sums[4 * pair + e] : sums[4 * pair + 4 + e];
    return item;
  }
};

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1) gemm_sm90_tile_kernel(const __grid_constant__ TileArguments args) {
#if PAGED_SM90A
  release_dependents();
  GPU_DYN_SHARED(unsigned char, base);
  const TileRing<C> ring(base, args);
  const TileShare<C> share(args);
  constexpr int kLoaders = 128 * C::kGroups;
  if (threadIdx.x == kLoaders) {
    prefetch_tensor_map(&args.weights);
    prefetch_tensor_map(&args.tokens);
    for (int i = 0; i < args.stages; ++i) {
      init_barrier(&ring.full[i], 1);
      init_barrier(&ring.empty[i], C::kGroups * C::kSharers);
    }
    fence_barrier_init();
  }
  if constexpr (C::kSharers > 1)
    sync_cluster();
  else
    __syncthreads();
  if (threadIdx.x >= kLoaders + 32) {
    wait_for_predecessors();
    fill_ring(args, share, ring, 0, [&](int stage, const Tile& tile, int chunk) {
      load_tile_tokens(args, ring, share.sharer, stage, tile.row_tile, chunk);
    });
  } else if (threadIdx.x >= kLoaders) {
    fill_ring(args, share, ring, args.pace, [&](int stage, const Tile& tile, int chunk) {
      load_tile_weights(args, ring, stage, tile.weight_tile, chunk);
    });
  } else {
    wait_for_predecessors();
    TileConsumer<C>{args, share, ring}.run();
    if constexpr (C::kSplit) return;
  }
  if constexpr (C::kSplit) {
    sync_cluster();
    sync_cluster();
  }
  if constexpr (C::kSharers > 1) sync_cluster();  // nobody leaves while others still write here
#endif
}

}  // namespace paged::gpu

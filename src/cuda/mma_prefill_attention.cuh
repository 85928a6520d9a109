// SPDX-License-Identifier: Apache-2.0
// Attention of prompts with mma.m16n8k16 over the paged cache (FlashAttention-2, Dao 2023), for chips before Hopper and
// shapes that Hopper's own kernel does not take. A block has the query heads of one kv head times some consecutive
// tokens of one sequence as its rows, and walks the keys in tiles of 64 absolute positions in ascending order; K and V
// of the next tile arrive while this one is computed. A tile that a row does not see changes nothing of it.
#pragma once

#include "attention_items.cuh"
#include "attention_mma.cuh"
#include "gpu/kv_layout.h"

namespace paged::gpu {

struct PrefillPlan {
  std::int32_t* num_items;
  QueryItem* items;
  std::int32_t* costs;

  static std::int64_t num_bytes(std::int64_t max_items) { return 16 + 20 * max_items; }
  static PrefillPlan at(void* plan, std::int64_t max_items) {
    auto* items = reinterpret_cast<QueryItem*>(static_cast<std::byte*>(plan) + 16);
    return {static_cast<std::int32_t*>(plan), items, reinterpret_cast<std::int32_t*>(items + max_items)};
  }
};

__global__ void __launch_bounds__(kPlanThreads) plan_prefill_kernel(const ItemList list, std::int32_t* num_items) {
  __shared__ std::int64_t warp_sums[kPlanThreads / 32];
  release_dependents();
  wait_for_predecessors();
  const std::int64_t all = list_items(list, warp_sums);
  if (threadIdx.x == 0) *num_items = static_cast<std::int32_t>(all >> 32);
}

struct PrefillArguments {
  const void* q;
  void* out;
  std::int64_t q_stride, out_stride;
  const void* cache;
  const std::int32_t* block_tables;
  std::int64_t block_table_stride;
  PrefillPlan plan;
  const float* sinks;
  ScoreScale scale;
  int num_kv_heads, group, window, block_shift;
};

// kWarps warps of 16 kRowTiles rows each, which have the scores of kKeys keys in registers at a time; kBlocksEach that
// fit on a multiprocessor together.
template <class Element, int dim, int warps, int row_tiles, int keys, int blocks>
struct PrefillConfig {
  using T = Element;
  static constexpr int kDim = dim, kWarps = warps, kRowTiles = row_tiles, kKeys = keys, kBlocksEach = blocks;
  static constexpr int kThreads = 32 * kWarps, kRows = 16 * kRowTiles * kWarps;
  static constexpr int kTile = kTileKeys * kDim;  // elements of K of a tile
  static constexpr std::int64_t kSharedBytes = (kRows * kDim + 4 * kTile) * 2;
};

template <class C>
class PrefillBlock {
  using T = typename C::T;
  static constexpr int kDim = C::kDim, kChunks = kDim / 8;  // of 16 bytes in a row

 public:
  __device__ PrefillBlock(const PrefillArguments& args, const QueryItem& item, int kv_head, unsigned char* memory)
      : args_(args),
        item_(item),
        kv_head_(kv_head),
        thread_(static_cast<int>(threadIdx.x)),
        lane_(thread_ % 32),
        warp_row_(thread_ / 32 * 16 * C::kRowTiles),
        num_rows_(item.num_tokens * args.group),
        q_(reinterpret_cast<T*>(memory)),
        tiles_(q_ + C::kRows * kDim) {}

  __device__ void run() {
    const TileRange range = tiles_of(item_, args_.window);
    find_blocks(range.begin);
    copy_query();
    copy_tile(range.begin, 0);
    for (auto& partial : partial_) partial.reset();
    for (int tile = range.begin; tile < range.end; ++tile) {
      const int stage = (tile - range.begin) % 2;
      wait_copies<0>();
      __syncthreads();  // this tile is here, and nobody reads the other stage any more
      if (tile + 1 < range.end) copy_tile(tile + 1, stage ^ 1);
      add_tile(tile, tiles_ + stage * 2 * C::kTile);
    }
    write_out();
  }

 private:
  // The blocks of the 64 keys of a tile.
  __device__ __forceinline__ void find_blocks(int tile) {
    const std::int32_t* table = args_.block_tables + item_.table_row * args_.block_table_stride;
    const int end = item_.position + item_.num_tokens;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = tile * kTileKeys + 16 * i;
      blocks_[i] = key < end ? table[key >> args_.block_shift] : 0;
    }
  }

  __device__ void copy_query() {
#pragma unroll 4
    for (int chunk = thread_; chunk < C::kRows * kChunks; chunk += C::kThreads) {
      const int row = chunk / kChunks, column = chunk % kChunks, token = row / args_.group;
      const T* from = static_cast<const T*>(args_.q) + (item_.token + token) * args_.q_stride +
                      (kv_head_ * args_.group + row % args_.group) * kDim + column * 8;
      copy_async_16(q_ + swizzled<kDim>(row, column), from, row < num_rows_);
    }
  }

  // Starts the copies of a tile, whose blocks are known, and finds the blocks of the next one.
  __device__ __forceinline__ void copy_tile(int tile, int stage) {
    const int piece = kDim << args_.block_shift;
    const int end = item_.position + item_.num_tokens;
    const int first = args_.window > 0 ? item_.position + 1 - args_.window : 0;
    T* to = tiles_ + stage * 2 * C::kTile;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = tile * kTileKeys + 16 * i;
      const T* k = static_cast<const T*>(args_.cache) +
                   piece_offset(blocks_[i], 0, kv_head_, args_.num_kv_heads, piece) +
                   (key & ((1 << args_.block_shift) - 1)) * kDim;
      const T* v = k + std::int64_t{args_.num_kv_heads} * piece;
      const bool any = key < end && key + 16 > first;  // else the block may not even exist
#pragma unroll
      for (int j = 0; j < (16 * kChunks + C::kThreads - 1) / C::kThreads; ++j) {
        const int chunk = j * C::kThreads + thread_, row = chunk / kChunks;
        if (16 * kChunks % C::kThreads != 0 && chunk >= 16 * kChunks) break;
        const bool valid = any && key + row >= first && key + row < end;
        T* at = to + swizzled<kDim>(16 * i + row, chunk % kChunks);
        copy_async_16(at, k + chunk * 8, valid);
        copy_async_16(at + C::kTile, v + chunk * 8, valid);
      }
    }
    commit_copies();
    find_blocks(tile + 1);
  }

  __device__ __forceinline__ RowKeys keys_of(int m) const {
    RowKeys keys;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      keys.end[half] = item_.position + row_of(m, half) / args_.group + 1;
      keys.first[half] = args_.window > 0 ? keys.end[half] - args_.window : 0;
    }
    return keys;
  }

  __device__ __forceinline__ void add_tile(int tile, const T* k) {
    const int first_key = tile * kTileKeys, end_key = first_key + kTileKeys;
    const int end_row = warp_row_ + 16 * C::kRowTiles, last_row = (end_row < num_rows_ ? end_row : num_rows_) - 1;
    const int first_end = item_.position + warp_row_ / args_.group + 1;  // of the keys that the warp's first row sees
    const int last_end = item_.position + last_row / args_.group + 1;
    const bool windowed = args_.window > 0;
    if (warp_row_ > last_row || first_key >= last_end || (windowed && end_key <= first_end - args_.window)) return;
    const bool masked = end_key > first_end || (windowed && first_key < last_end - args_.window);
#pragma unroll
    for (int part = 0; part < kTileKeys; part += C::kKeys) {
      float score[C::kRowTiles][C::kKeys / 8][4];
      score_keys<T, kDim>(score, [&](int m, int i) { return query(m, i); }, k, part);
#pragma unroll
      for (int m = 0; m < C::kRowTiles; ++m) {
        if (args_.scale.cap > 0.0f) cap_scores(score[m], args_.scale);
        if (masked) mask_scores(score[m], keys_of(m), first_key + part);
        partial_[m].weigh(score[m], args_.scale.factor);
      }
      add_values(partial_, score, k + C::kTile, part);
    }
  }

  __device__ __forceinline__ Vec<std::uint32_t, 4> query(int m, int i) const {
    std::uint32_t r[4];
    load_matrices(r, q_ + swizzled<kDim>(warp_row_ + 16 * m + lane_ % 16, 2 * i + lane_ / 16));
    return {{r[0], r[1], r[2], r[3]}};
  }

  __device__ int row_of(int m, int half) const { return warp_row_ + 16 * m + 8 * half + lane_ / 4; }

  __device__ void write_out() {
#pragma unroll
    for (int m = 0; m < C::kRowTiles; ++m) {
      partial_[m].join_sums();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row_of(m, half), head = kv_head_ * args_.group + row % args_.group;
        if (row >= num_rows_) continue;
        const float scale = out_scale(partial_[m].max[half], partial_[m].sum[half], head);
        T* to = static_cast<T*>(args_.out) + (item_.token + row / args_.group) * args_.out_stride + head * kDim +
                2 * (lane_ % 4);
#pragma unroll
        for (int i = 0; i < kDim / 8; ++i) {
          const float* out = partial_[m].out[i] + 2 * half;
          *reinterpret_cast<std::uint32_t*>(to + 8 * i) = pack_pair<T>(out[0] * scale, out[1] * scale);
        }
      }
    }
  }
  __device__ float out_scale(float max, float sum, int head) const {
    if (args_.sinks == nullptr) return 1.0f / sum;
    const float sink = args_.sinks[head] * kLog2E, top = fmaxf(max, sink), own = fast_exp2(max - top);
    return own / (sum * own + fast_exp2(sink - top));
  }

  const PrefillArguments& args_;
  const QueryItem& item_;
  const int kv_head_, thread_, lane_, warp_row_, num_rows_;
  T *const q_, *const tiles_;  // tiles_: [2 stages][K, V][64][kDim]
  int blocks_[4];              // of the next tile to copy
  RowPartial<T, kDim> partial_[C::kRowTiles];
};

// Blocks are ordered so that the longest of a sequence start first.
template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocksEach) mma_prefill_kernel(const PrefillArguments args) {
  GPU_DYN_SHARED(unsigned char, memory);
  release_dependents();
  wait_for_predecessors();
  const int num_items = *args.plan.num_items, index = static_cast<int>(blockIdx.y);
  if (index >= num_items) return;
  const QueryItem item = args.plan.items[num_items - 1 - index];
  PrefillBlock<C>(args, item, static_cast<int>(blockIdx.x), memory).run();
}

}  // namespace paged::gpu

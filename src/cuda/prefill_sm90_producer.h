// SPDX-License-Identifier: Apache-2.0
// The warp that feeds prefill attention: draws work items, gathers Q, K and V into shared memory by TMA.
#pragma once

#include <algorithm>

#include "gpu/kv_layout.h"
#include "prefill_sm90.h"

namespace paged::gpu::prefill_sm90 {

// What a lane copies of every tile of keys: a box of (part of) one block.
struct LaneBox {
  bool active;
  int column;     // first
  int key;        // first, relative to the tile's
  int tile_byte;  // where it goes
};
template <class Tl>
__device__ __forceinline__ LaneBox lane_box(int lane, int log2_block_size) {
  constexpr int kBoxesPerBlock = Tl::kColumnTiles / Tl::kBoxColumnTiles;
  const int rows = std::min(1 << log2_block_size, int{Tl::kKeys});
  const int key = lane / kBoxesPerBlock * rows, column_tile = lane % kBoxesPerBlock;
  return {key < Tl::kKeys, 64 * column_tile, key, column_tile * Tl::kColumnBytes + key / 8 * Tl::kKeyGroupBytes};
}

// Where the lane's box of a tile lies in the cache: the index of K's piece (V's is num_kv_heads further) and the row.
struct Source {
  int piece, row;
};
template <class Tl>
__device__ __forceinline__ Source find_source(const Arguments& a, const LaneBox& box, const Work& work, int key_tile) {
  const int key = key_tile * Tl::kKeys + box.key, rows = std::min(1 << a.log2_block_size, int{Tl::kKeys});
  // Blocks that nobody sees may hold anything, NaN included, and 0 * NaN is not 0.
  if (!box.active || key >= work.tile.seq_len || key + rows <= work.first_key) return {a.num_pieces, 0};
  const std::int32_t* table = a.block_tables + std::int64_t{work.tile.table_row} * a.block_table_stride;
  return {table[key >> a.log2_block_size] * 2 * a.num_kv_heads + work.kv_head, key & ((1 << a.log2_block_size) - 1)};
}

template <class Tl>
class Producer {
 public:
  __device__ __forceinline__ Producer(Shared<Tl>& shared, const Arguments& a, const TensorMap* q_map,
                                      const TensorMap* kv_map)
      : shared_(shared), a_(a), q_map_(q_map), kv_map_(kv_map), lane_(static_cast<int>(threadIdx.x % kWarp)) {
    box_ = lane_box<Tl>(lane_, a.log2_block_size);
  }

  __device__ __forceinline__ void run() {
    const int num_items = a_.plan->num_tiles * a_.num_kv_heads * std::max(a_.plan->chunks_per_pair, 1);
    while (true) {
      int item = 0;
      if (lane_ == 0) item = static_cast<int>(atomic_add(a_.counters, 1u));
      item = shuffle(item, 0);
      // Everybody draws once past the end; the last draw of all leaves the counter as it was.
      if (lane_ == 0 && item == num_items + static_cast<int>(gridDim.x) - 1) *a_.counters = 0;
      const Work work = item < num_items ? find_work(item) : Work{};
      if (item < num_items && work.last_tile < work.first_tile) continue;
      wait(&shared_.q_empty[q_.stage], q_.parity ^ 1);
      sync_warp();
      if (lane_ == 0) shared_.work[q_.stage] = work;
      if (item >= num_items) {
        if (lane_ == 0) arrive(&shared_.q_full[q_.stage]);
        return;
      }
      load_item(work);
    }
  }

 private:
  // An item past a pair's last chunk has no tiles.
  __device__ __forceinline__ Work find_work(int item) const {
    const Plan& plan = *a_.plan;
    const int chunks = std::max(plan.chunks_per_pair, 1), pair = item / chunks;
    const int first_head = pair / (plan.num_tiles * plan.heads_at_once) * plan.heads_at_once;
    const int heads = std::min(plan.heads_at_once, a_.num_kv_heads - first_head);
    const int rest = pair - first_head * plan.num_tiles;
    Work work{};
    work.tile = plan.tiles[rest / heads];
    work.kv_head = first_head + rest % heads;
    work.pair = pair;
    const KeyRange keys = key_range(work.tile, a_.window);
    work.first_key = keys.first;
    work.first_tile = keys.first / Tl::kKeys;
    work.last_tile = keys.last / Tl::kKeys;
    if (plan.chunks_per_pair > 0) {
      work.chunk = item % chunks;
      work.num_chunks = keys.num_chunks();
      const int begin = (keys.first / kChunkKeys + work.chunk) * Tl::kChunkTiles;
      work.first_tile = std::max(work.first_tile, begin);
      work.last_tile = std::min(work.last_tile, begin + Tl::kChunkTiles - 1);
    }
    return work;
  }

  __device__ __forceinline__ void load_item(const Work& work) {
    load_queries(work);
    Source next = find_source<Tl>(a_, box_, work, work.last_tile);
    for (int tile = work.last_tile; tile >= work.first_tile; --tile) {
      const Source now = next;
      load_keys(now);
      if (tile < work.last_tile) load_values(held_, work, tile + 1);
      held_ = now;
      if (tile > work.first_tile) next = find_source<Tl>(a_, box_, work, tile - 1);
    }
    load_values(held_, work, work.first_tile);
  }

  __device__ __forceinline__ void load_queries(const Work& work) {
    const int tokens = Tl::kRows / a_.group;
    Barrier* full = &shared_.q_full[q_.stage];
    if (lane_ == 0) arrive_and_expect(full, Tl::kColumnTiles * tokens * a_.group * kRowBytes);
    sync_warp();
    if (lane_ < Tl::kColumnTiles)
      load_box(shared_.q[q_.stage] + lane_ * Tl::kQTileBytes, q_map_, full, kEvictFirst, 64 * lane_, 0, work.kv_head,
               work.tile.first_token);
    q_.advance();
  }

  __device__ __forceinline__ void load_keys(const Source& from) {
    wait(&shared_.k_empty[k_.stage], k_.parity ^ 1);
    Barrier* full = &shared_.k_full[k_.stage];
    if (lane_ == 0) arrive_and_expect(full, Tl::kKvBytes);
    sync_warp();
    if (box_.active)
      load_box(shared_.k[k_.stage] + box_.tile_byte, kv_map_, full, kEvictNormal, box_.column, 0, 0, from.row / 8,
               from.piece);
    k_.advance();
  }

  __device__ __forceinline__ void load_values(const Source& from, const Work& work, int key_tile) {
    wait(&shared_.v_empty[v_.stage], v_.parity ^ 1);
    const int valid_keys = work.tile.seq_len - key_tile * Tl::kKeys;
    const bool partial = valid_keys < Tl::kKeys;
    Barrier* full = &shared_.v_full[v_.stage];
    Barrier* landed = partial ? &shared_.v_landed : full;
    if (lane_ == 0) arrive_and_expect(landed, Tl::kKvBytes);
    sync_warp();
    const int piece = from.piece < a_.num_pieces ? from.piece + a_.num_kv_heads : a_.num_pieces;
    if (box_.active)
      load_box(shared_.v[v_.stage] + box_.tile_byte, kv_map_, landed, kEvictNormal, box_.column, 0, 0, from.row / 8,
               piece);
    if (partial) {
      wait(landed, landed_parity_);
      landed_parity_ ^= 1;
      clear_tail(shared_.v[v_.stage], valid_keys);
      fence_async_proxy();
      sync_warp();
      if (lane_ == 0) arrive(full);
    }
    v_.advance();
  }

  // Zeros instead of what the cache holds past the sequence's end.
  __device__ __forceinline__ void clear_tail(unsigned char* tile, int valid_keys) {
    constexpr int kChunks = kRowBytes / 16 * Tl::kColumnTiles;  // of a key
    for (int i = valid_keys * kChunks + lane_; i < Tl::kKeys * kChunks; i += kWarp) {
      const int key = i / kChunks, chunk = i % kChunks;
      unsigned char* to =
          tile + key / 8 * Tl::kKeyGroupBytes + key % 8 * kRowBytes + chunk / 8 * Tl::kColumnBytes + chunk % 8 * 16;
      store_vec(reinterpret_cast<std::uint32_t*>(to), Vec<std::uint32_t, 4>{});
    }
  }

  Shared<Tl>& shared_;
  const Arguments& a_;
  const TensorMap* q_map_;
  const TensorMap* kv_map_;
  const int lane_;
  LaneBox box_;
  Source held_{};  // of the tile whose keys, but not yet values, were loaded
  RingPosition<Tl::kQStages> q_;
  RingPosition<Tl::kStages> k_, v_;
  int landed_parity_ = 0;
};

}  // namespace paged::gpu::prefill_sm90

// SPDX-License-Identifier: Apache-2.0
// Lists the tiles of query rows of a step on the device, where the lengths are known: an item is the consecutive tokens
// of one sequence that share a tile of rows.
#pragma once

#include "gpu/gpu.h"
#include "ops/batch_view.h"

namespace paged::gpu {

constexpr int kTileKeys = 64;
constexpr int kPairCost = 1;        // what starting and ending an item costs, in tiles of keys
constexpr int kPlanThreads = 1024;  // of the one block that plans

struct alignas(16) QueryItem {
  std::int32_t token, num_tokens;
  std::int32_t position;  // of the first token; -1: a padded sequence, which sees no key
  std::int32_t table_row;
};

struct TileRange {
  int begin, end;
  __device__ int size() const { return end - begin; }
};

// Tiles, of absolute positions, that hold keys of the item's tokens.
__device__ __forceinline__ TileRange tiles_of(const QueryItem& item, int window) {
  const int first = item.position + 1 - window;
  const int end = item.position + item.num_tokens;
  return {window > 0 && first > 0 ? first / kTileKeys : 0, (end + kTileKeys - 1) / kTileKeys};
}

struct ItemList {
  BatchView batch;
  bool is_decode;  // of which sequences
  int tokens_per_item, window;
  QueryItem* items;
  std::int32_t* costs;  // [items] tiles of keys and kPairCost of the items before
};

// Sums over the block's threads up to and including the own one.
__device__ inline std::int64_t inclusive_sum(std::int64_t value, std::int64_t* warp_sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const auto scan_warp = [lane](std::int64_t own) {
    for (int step = 1; step < 32; step *= 2) {
      const std::int64_t other = shuffle(own, lane < step ? lane : lane - step);
      if (lane >= step) own += other;
    }
    return own;
  };
  value = scan_warp(value);
  __syncthreads();
  if (lane == 31) warp_sums[warp] = value;
  __syncthreads();
  if (warp == 0) warp_sums[lane] = scan_warp(warp_sums[lane]);
  __syncthreads();
  return value + (warp > 0 ? warp_sums[warp - 1] : 0);
}

struct SequenceItems {
  int first_token, num_tokens, position, table_row, count;

  __device__ SequenceItems(const ItemList& list, int sequence) : count(0) {
    if (sequence >= list.batch.num_sequences) return;
    first_token = list.batch.query_start[sequence];
    num_tokens = list.batch.query_start[sequence + 1] - first_token;
    const int length = list.batch.seq_lens[sequence];
    position = length - num_tokens;
    table_row = list.batch.block_table_rows[sequence];
    // Last, so that the loads need not wait for each other. An idle sequence has no length.
    if ((list.batch.is_decode[sequence] != 0) == list.is_decode && length > 0)
      count = (num_tokens + list.tokens_per_item - 1) / list.tokens_per_item;
  }
  __device__ QueryItem item(int index, int tokens_per_item) const {
    const int done = index * tokens_per_item, left = num_tokens - done;
    return {first_token + done, left < tokens_per_item ? left : tokens_per_item, position + done, table_row};
  }
};

// Lists all items with the costs before each; returns (number of items) << 32 | cost of all.
__device__ inline std::int64_t list_items(const ItemList& list, std::int64_t* warp_sums) {
  std::int64_t before = 0;
  for (int base = 0; base < list.batch.num_sequences; base += kPlanThreads) {
    const SequenceItems sequence(list, base + static_cast<int>(threadIdx.x));
    std::int64_t own = 0;
    for (int i = 0; i < sequence.count; ++i)
      own += (std::int64_t{1} << 32) + tiles_of(sequence.item(i, list.tokens_per_item), list.window).size() + kPairCost;
    std::int64_t at = before + inclusive_sum(own, warp_sums) - own;
    before += warp_sums[kPlanThreads / 32 - 1];
    for (int i = 0; i < sequence.count; ++i) {
      const QueryItem item = sequence.item(i, list.tokens_per_item);
      list.items[at >> 32] = item;
      list.costs[at >> 32] = static_cast<std::int32_t>(at);
      at += (std::int64_t{1} << 32) + tiles_of(item, list.window).size() + kPairCost;
    }
  }
  return before;
}

}  // namespace paged::gpu

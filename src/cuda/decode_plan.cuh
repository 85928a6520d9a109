// SPDX-License-Identifier: Apache-2.0
// Deals the keys of a step's decode attention out to a fixed number of blocks, on the device (lengths are not known to
// the host). An item is the tokens of one sequence that share a tile of query rows; a pair is (item, kv head). All
// tiles of 64 keys of all pairs, in order, are cut into equal contiguous ranges, one a block, as in stream-K (Osama et
// al., 2023) and LeanAttention (Sanovar et al., 2024). Inside a pair, cuts fall on units: leaves of 256 or nodes of
// 1024 absolute positions, the levels of the tree in which partial results are joined.
#pragma once

#include "attention_items.cuh"

namespace paged::gpu {

constexpr int kLeafTiles = 4;
constexpr int kNodeTiles = 16;
constexpr int kMaxLeafTiles = 48;                     // cuts fall on nodes where blocks have more tiles than this
constexpr int kTileCycles = 1300, kPieceCycles = 90;  // roughly: of a tile that need not wait, of joining a piece

// Where a block begins; it ends where the next one begins. Pieces are partial results of pairs that blocks share.
struct alignas(16) DecodeStart {
  std::int32_t pair;
  std::int32_t tile;         // counted from the pair's first
  std::int32_t owner;        // the block in which the pair begins
  std::int32_t owner_piece;  // where the pair's pieces begin, if tile > 0
  std::int32_t last_piece;   // where those of the pair begin that begins in this block and ends in another
  std::int32_t unused[3];
  QueryItem item;  // the pair's
};

struct DecodePlan {
  std::int32_t* unit_tiles;  // of the unit at which pairs are cut
  DecodeStart* starts;       // [num_blocks + 1]
  QueryItem* items;
  std::int32_t* costs;  // [items] tiles and kPairCost of the items before, for one kv head

  static std::int64_t num_bytes(std::int64_t max_items) {
    return 16 + static_cast<std::int64_t>(sizeof(DecodeStart)) * (kPlanThreads + 1) + 20 * max_items;
  }
  static DecodePlan at(void* plan, std::int64_t max_items) {
    auto* base = static_cast<std::byte*>(plan);
    auto* starts = reinterpret_cast<DecodeStart*>(base + 16);
    auto* items = reinterpret_cast<QueryItem*>(starts + kPlanThreads + 1);
    return {reinterpret_cast<std::int32_t*>(base), starts, items, reinterpret_cast<std::int32_t*>(items + max_items)};
  }
};

struct DecodePlanArguments {
  ItemList list;  // into the plan
  DecodePlan plan;
  int num_kv_heads, num_blocks;
};

// The last index whose value is not above `limit`; values ascend.
template <class Value, class Limit>
__device__ int last_not_above(const Value& value, int count, Limit limit) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (value(middle) <= limit ? low : high) = middle;
  }
  return low;
}

// A place in the order of all tiles: pair << 32 | tile, and the cost of all before it.
struct Place {
  std::int64_t key, cost;
};

constexpr int kSharedItems = 1024;  // a plan of no more items is made with lists in shared memory

// What the plan is made with, in shared memory.
struct PlanShared {
  QueryItem items[kSharedItems];
  std::int32_t costs[kSharedItems];
  std::int64_t warp_sums[kPlanThreads / 32];
  Place places[kPlanThreads + 1];     // of the blocks' starts
  std::int32_t pieces[kPlanThreads];  // where those of the block's last pair begin
  int largest_share, most_pieces;
};

// The first start of a unit that is not before `cost`.
__device__ inline Place place_at(const DecodePlanArguments& args, int num_items, std::int64_t cost, int unit) {
  const std::int64_t heads = args.num_kv_heads;
  const int index = last_not_above([&](int i) { return args.plan.costs[i] * heads; }, num_items, cost);
  const TileRange tiles = tiles_of(args.plan.items[index], args.list.window);
  const int pair_cost = tiles.size() + kPairCost;
  const std::int64_t before = args.plan.costs[index] * heads;
  const auto rest = static_cast<int>(cost - before);
  int head = rest / pair_cost, tile = rest % pair_cost;
  if (tile > 0) tile = (tiles.begin + tile + unit - 1) / unit * unit - tiles.begin;
  if (tile > 0 && tile >= tiles.size()) {
    ++head;
    tile = 0;
  }
  return {(index * heads + head) << 32 | tile, before + std::int64_t{head} * pair_cost + tile};
}

// Cuts at units and returns how many pieces this thread's block has room for: those of the pair in which it ends, if
// that begins in it too.
__device__ inline int cut(const DecodePlanArguments& args, std::int64_t all, int unit, PlanShared& shared) {
  const int block = static_cast<int>(threadIdx.x), num_blocks = args.num_blocks;
  const auto num_items = static_cast<int>(all >> 32);
  const std::int64_t cost = (all & 0xffffffff) * args.num_kv_heads;
  const std::int64_t each = cost / num_blocks, rest = cost % num_blocks;
  __syncthreads();
  if (block < num_blocks) {
    const std::int64_t at = each * block + static_cast<int>(rest * block + num_blocks - 1) / num_blocks;
    shared.places[block] = num_items == 0 ? Place{0, 0} : place_at(args, num_items, at, unit);
  }
  if (block == 0) shared.places[num_blocks] = {std::int64_t{num_items} * args.num_kv_heads << 32, cost};
  if (block == 0) shared.largest_share = shared.most_pieces = 0;
  __syncthreads();
  if (block >= num_blocks) return 0;
  const Place begin = shared.places[block], end = shared.places[block + 1];
  const std::int64_t pair = end.key >> 32;
  int pieces = 0;
  if (end.key != pair << 32 && begin.key <= pair << 32) {
    const TileRange range = tiles_of(args.plan.items[pair / args.num_kv_heads], args.list.window);
    pieces = (range.end + unit - 1) / unit - range.begin / unit;
    atomic_max(&shared.most_pieces, pieces);
  }
  atomic_max(&shared.largest_share, static_cast<int>(end.cost - begin.cost));
  return pieces;
}

// The unit with which the slowest block should be done first; the blocks are cut at it.
__device__ inline int choose_unit(const DecodePlanArguments& args, std::int64_t all, PlanShared& shared, int& pieces) {
  const auto cycles = [&] {
    __syncthreads();
    return std::int64_t{shared.largest_share} * kTileCycles + shared.most_pieces * kPieceCycles;
  };
  pieces = cut(args, all, kNodeTiles, shared);
  if ((all & 0xffffffff) * args.num_kv_heads > std::int64_t{kMaxLeafTiles} * args.num_blocks) return kNodeTiles;
  const std::int64_t nodes = cycles();
  pieces = cut(args, all, kLeafTiles, shared);
  if (cycles() < nodes) return kLeafTiles;
  pieces = cut(args, all, kNodeTiles, shared);
  return kNodeTiles;
}

// No release_dependents(): gpu.h says why.
__global__ void __launch_bounds__(kPlanThreads) plan_decode_kernel(const DecodePlanArguments given) {
  __shared__ PlanShared shared;
  wait_for_predecessors();
  DecodePlanArguments args = given;
  const bool in_shared = args.list.batch.num_tokens <= kSharedItems;
  if (in_shared) {
    args.list.items = args.plan.items = shared.items;
    args.list.costs = args.plan.costs = shared.costs;
  }
  const int block = static_cast<int>(threadIdx.x), num_blocks = args.num_blocks;
  const std::int64_t all = list_items(args.list, shared.warp_sums);
  __syncthreads();  // the lists are written
  if (in_shared && block < static_cast<int>(all >> 32)) given.plan.items[block] = shared.items[block];
  int pieces;
  const int unit = choose_unit(args, all, shared, pieces);
  shared.pieces[block] = static_cast<std::int32_t>(inclusive_sum(pieces, shared.warp_sums)) - pieces;
  __syncthreads();
  if (block == 0) *args.plan.unit_tiles = unit;
  thread_fence();
  if (block > num_blocks) return;
  const std::int64_t own = shared.places[block].key, pair = own >> 32;
  const int owner = last_not_above([&](int i) { return shared.places[i].key; }, num_blocks, pair << 32);
  DecodeStart start{};
  start.pair = static_cast<std::int32_t>(pair);
  start.tile = static_cast<std::int32_t>(own);
  start.owner = owner;
  start.owner_piece = shared.pieces[owner];
  start.last_piece = shared.pieces[block];
  if (own < shared.places[num_blocks].key) start.item = args.plan.items[pair / args.num_kv_heads];
  args.plan.starts[block] = start;
  thread_fence();
}

}  // namespace paged::gpu

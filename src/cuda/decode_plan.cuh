// SPDX-License-Identifier: Apache-2.0
// Deals the keys of a step's decode attention out to a fixed number of blocks, on the device (lengths are not known to
// the host). An item is the tokens of one sequence that share a tile of query rows; a pair is (item, kv head). All
// tiles of 64 keys of all pairs, in order, are cut into equal contiguous ranges, one a block, as in stream-K (Osama et
// al., 2023) and LeanAttention (Sanovar et al., 2024). Inside a pair, cuts fall on units: leaves of 256 or nodes of
// 1024 absolute positions, the levels of the tree in which partial results are joined.
//
// A block leaves pieces, partial results, of a pair that it shares with others: the leaves of a node that was begun
// elsewhere, and for each node that it begins, all it has of that. A node is joined in ascending order, so this start
// of one is a partial result of the tree, whoever goes on with it.
#pragma once

#include "attention_items.cuh"

namespace paged::gpu {

constexpr int kLeafTiles = 4;
constexpr int kNodeTiles = 16;
constexpr int kTileCycles = 1300, kPieceCycles = 90;  // roughly: of a tile that need not wait, of joining a piece

// All pieces of a pair, in the order of positions, and those of one block.
struct PieceRange {
  std::int32_t first, count;  // of the pair
  std::int32_t own_first;
};

// Where a block begins; it ends where the next one begins.
struct alignas(16) DecodeStart {
  std::int32_t pair;
  std::int32_t tile;       // counted from the pair's first
  PieceRange pieces;       // of the pair, if tile > 0
  std::int32_t owner;      // the block in which the pair begins
  PieceRange last_pieces;  // of the pair that begins in this block and ends in another
  std::int32_t unused[3];
  QueryItem item;  // the pair's
};

struct DecodePlan {
  DecodeStart* starts;  // [num_blocks + 1]
  QueryItem* items;
  std::int32_t* costs;  // [items] tiles and kPairCost of the items before, for one kv head

  static std::int64_t num_bytes(std::int64_t max_items) {
    return static_cast<std::int64_t>(sizeof(DecodeStart)) * (kPlanThreads + 1) + 20 * max_items;
  }
  static DecodePlan at(void* plan, std::int64_t max_items) {
    auto* starts = static_cast<DecodeStart*>(plan);
    auto* items = reinterpret_cast<QueryItem*>(starts + kPlanThreads + 1);
    return {starts, items, reinterpret_cast<std::int32_t*>(items + max_items)};
  }
};

// The first tile that is not before `tile` and begins a node.
__host__ __device__ constexpr int next_node(int tile) { return (tile + kNodeTiles - 1) / kNodeTiles * kNodeTiles; }

// Of the tiles of `pair` that a block has. Cuts fall on leaves.
__device__ inline int num_pieces(const TileRange& pair, const TileRange& part) {
  const auto nodes = [](int begin, int end) { return (end + kNodeTiles - 1) / kNodeTiles - begin / kNodeTiles; };
  if (part.begin == pair.begin) return nodes(part.begin, part.end);
  const int node = next_node(part.begin), leaves_end = node < part.end ? node : part.end;
  return (leaves_end + kLeafTiles - 1) / kLeafTiles - part.begin / kLeafTiles +
         (node < part.end ? nodes(node, part.end) : 0);
}

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
  Place places[kPlanThreads + 1];          // of the blocks' starts
  std::int32_t last_pieces[kPlanThreads];  // where those of the pair begin that begins in the block
  std::int32_t num_pieces[kPlanThreads];   // of that pair
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

// What a block has of the pair in which it begins after that pair's start, and of the one in which it ends before that
// pair's end if that begins in the block: tiles counted from the pairs' first ones; `end` is 0 where there is none.
struct SharedParts {
  std::int64_t first_pair, last_pair;
  int first_begin, first_end, last_end;

  __device__ SharedParts(std::int64_t begin, std::int64_t end, const DecodePlanArguments& args)
      : first_pair(begin >> 32),
        last_pair(end >> 32),
        first_begin(static_cast<int>(begin & 0xffffffff)),
        first_end(0),
        last_end(static_cast<int>(end & 0xffffffff)) {
    if (first_begin > 0) first_end = first_pair == last_pair ? last_end : tiles(args, first_pair).size();
    if (first_begin > 0 && first_pair == last_pair) last_end = 0;
  }
  __device__ static TileRange tiles(const DecodePlanArguments& args, std::int64_t pair) {
    return tiles_of(args.plan.items[pair / args.num_kv_heads], args.list.window);
  }
  __device__ int num_first_pieces(const DecodePlanArguments& args) const {
    if (first_end <= first_begin) return 0;
    const TileRange pair = tiles(args, first_pair);
    return num_pieces(pair, {pair.begin + first_begin, pair.begin + first_end});
  }
  __device__ int num_last_pieces(const DecodePlanArguments& args) const {
    if (last_end == 0) return 0;
    const TileRange pair = tiles(args, last_pair);
    return num_pieces(pair, {pair.begin, pair.begin + last_end});
  }
};

// Cuts at units.
__device__ inline void cut(const DecodePlanArguments& args, std::int64_t all, int unit, PlanShared& shared) {
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
  if (block >= num_blocks) return;
  const Place begin = shared.places[block], end = shared.places[block + 1];
  const SharedParts parts(begin.key, end.key, args);
  if (parts.last_end > 0) {
    const TileRange pair = SharedParts::tiles(args, parts.last_pair);
    atomic_max(&shared.most_pieces, (pair.end + unit - 1) / unit - pair.begin / unit);  // or less
  }
  atomic_max(&shared.largest_share, static_cast<int>(end.cost - begin.cost));
}

// Cuts where the slowest block should be done first.
__device__ inline void choose_cuts(const DecodePlanArguments& args, std::int64_t all, PlanShared& shared) {
  const auto cycles = [&] {
    __syncthreads();
    return std::int64_t{shared.largest_share} * kTileCycles + shared.most_pieces * kPieceCycles;
  };
  cut(args, all, kNodeTiles, shared);
  const std::int64_t nodes = cycles();
  cut(args, all, kLeafTiles, shared);
  if (cycles() >= nodes) cut(args, all, kNodeTiles, shared);
  __syncthreads();
}

// Numbers the pieces block by block, so that those of a pair lie together.
__device__ inline DecodeStart start_of(const DecodePlanArguments& args, int block, PlanShared& shared) {
  const int num_blocks = args.num_blocks;
  const std::int64_t own = shared.places[block < num_blocks ? block : num_blocks].key;
  const SharedParts parts(own, shared.places[block < num_blocks ? block + 1 : num_blocks].key, args);
  const int num_first = parts.num_first_pieces(args), num_last = parts.num_last_pieces(args);
  const auto before =
      static_cast<std::int32_t>(inclusive_sum(num_first + num_last, shared.warp_sums)) - num_first - num_last;
  shared.last_pieces[block] = before + num_first;
  shared.num_pieces[block] = num_last;
  const int owner = last_not_above([&](int i) { return shared.places[i].key; }, num_blocks, parts.first_pair << 32);
  __syncthreads();
  if (num_first > 0) atomic_add(&shared.num_pieces[owner], num_first);
  __syncthreads();
  DecodeStart start{};
  start.pair = static_cast<std::int32_t>(parts.first_pair);
  start.tile = parts.first_begin;
  start.pieces = {shared.last_pieces[owner], shared.num_pieces[owner], before};
  start.owner = owner;
  start.last_pieces = {shared.last_pieces[block], shared.num_pieces[block], shared.last_pieces[block]};
  if (own < shared.places[num_blocks].key) start.item = args.plan.items[parts.first_pair / args.num_kv_heads];
  return start;
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
  const int block = static_cast<int>(threadIdx.x);
  const std::int64_t all = list_items(args.list, shared.warp_sums);
  __syncthreads();  // the lists are written
  if (in_shared && block < static_cast<int>(all >> 32)) given.plan.items[block] = shared.items[block];
  choose_cuts(args, all, shared);
  const DecodeStart start = start_of(args, block, shared);
  if (block <= args.num_blocks) args.plan.starts[block] = start;
  thread_fence();
}

}  // namespace paged::gpu

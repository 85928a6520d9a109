// SPDX-License-Identifier: Apache-2.0
// The blocks nobody references, and which of them is handed out next: first those without content, then cached ones,
// least worth first. Only a block that no cached block continues can go, so what is cached is always reachable.
//
// Worth is an age (when the block was freed: least recently freed first) or a score that its owners were given. The two
// kinds are ordered apart; whoever asks for the victim says what a block of the first kind is worth at its age. Since
// whoever references a block references those before it, ages alone give the order of a plain list: a sequence that
// frees its blocks tail first has them evicted tail first.
//
// Blocks may stand in lanes of their own (tenants with a floor, tenant_ledger.h), of which whoever asks for the victim
// leaves some out.
//
// Every operation is O(1) or O(log of the number of cached paths), a victim O(lanes); only a new lane allocates.
#pragma once

#include <cstdint>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "core/free_block_list.h"
#include "core/indexed_heap.h"
#include "core/types.h"

namespace paged {

struct BlockWorth {
  bool by_age = true;
  double score = 0.0;  // unless by_age
};

class EvictionOrder {
 public:
  explicit EvictionOrder(std::int32_t num_blocks);
  EvictionOrder(const EvictionOrder&) = delete;
  EvictionOrder& operator=(const EvictionOrder&) = delete;

  std::int32_t num_free() const { return num_free_; }
  bool is_free(BlockId block) const { return node(block).is_free; }
  bool is_cached(BlockId block) const { return node(block).is_cached; }
  bool may_go(BlockId block) const { return may_go(node(block)); }
  BlockId parent(BlockId block) const { return node(block).parent; }
  std::int32_t depth(BlockId block) const { return node(block).depth; }  // of one with content: blocks before it
  std::int32_t num_children(BlockId block) const { return node(block).num_children; }
  bool is_forgotten(BlockId block) const { return node(block).stamp == 0; }
  std::int32_t num_blank() const { return blank_.size(); }

  // `keep_age`: it was not used.
  void free(BlockId block, const BlockWorth& worth, double now, bool keep_age = false);
  void take(BlockId block);
  // The block, in use, now has content that continues `parent`'s (kNoBlock: nothing before it).
  void enter(BlockId block, BlockId parent);
  // The content of a free block is forgotten. The block before it, if that is what may go next: reprice() it.
  BlockId leave(BlockId block);
  // What it is worth has changed. `forget`: nothing; it goes before all others of its kind.
  void reprice(BlockId block, const BlockWorth& worth, bool forget = false);

  std::int32_t add_lane();
  void set_lane(BlockId block, std::int32_t lane);  // 0 at first

  // One is free, in a lane that `may_take` allows. `worth_at_age`: the score of a block that goes by age, freed so many
  // seconds before `now`.
  template <typename WorthAtAge, typename MayTake>
  BlockId victim(double now, const WorthAtAge& worth_at_age, const MayTake& may_take) const {
    return blank_.size() > 0 ? blank_.front() : cached_victim(now, worth_at_age, may_take);
  }
  // Of those with content; kNoBlock: none may go.
  template <typename WorthAtAge, typename MayTake>
  BlockId cached_victim(double now, const WorthAtAge& worth_at_age, const MayTake& may_take) const {
    BlockId best = kNoBlock;
    std::pair<double, std::int64_t> best_worth;
    for (std::size_t lane = 0; lane < lanes_.size(); ++lane) {
      const BlockId block = first_of(lanes_[lane], now, worth_at_age);
      if (block == kNoBlock || !may_take(static_cast<std::int32_t>(lane))) continue;
      if (lanes_.size() == 1) return block;
      const std::pair worth(worth_of(node(block), now, worth_at_age), node(block).stamp);
      if (best == kNoBlock || worth < best_worth) {
        best = block;
        best_worth = worth;
      }
    }
    return best;
  }

  // Throws InternalError with what is wrong, in O(num_blocks).
  void check_integrity() const;

 private:
  struct Node {
    BlockId parent = kNoBlock;
    std::int32_t num_children = 0;
    std::int32_t depth = 0;
    bool is_free = true;
    bool is_cached = false;
    std::int64_t stamp = 0;  // counts frees; 0: worth nothing
    double freed_at = 0.0;
    BlockWorth worth = {};
    std::int32_t lane = 0;
  };
  using ByAge = std::pair<std::int64_t, BlockId>;
  using ByScore = std::tuple<double, std::int64_t, BlockId>;
  struct Lane {
    IndexedHeap<ByAge> by_age;
    IndexedHeap<ByScore> by_score;
  };

  const Node& node(BlockId block) const { return nodes_[static_cast<std::size_t>(block)]; }
  Node& node(BlockId block) { return nodes_[static_cast<std::size_t>(block)]; }
  static bool may_go(const Node& node) { return node.is_free && node.is_cached && node.num_children == 0; }
  Lane& lane_of(BlockId block) { return lanes_[static_cast<std::size_t>(node(block).lane)]; }
  void insert(BlockId block);
  void remove(BlockId block);

  template <typename WorthAtAge>
  static double worth_of(const Node& node, double now, const WorthAtAge& worth_at_age) {
    if (!node.worth.by_age) return node.worth.score;
    return node.stamp == 0 ? -std::numeric_limits<double>::infinity() : worth_at_age(now - node.freed_at);
  }
  template <typename WorthAtAge>
  BlockId first_of(const Lane& lane, double now, const WorthAtAge& worth_at_age) const {
    if (lane.by_score.empty()) return lane.by_age.empty() ? kNoBlock : lane.by_age.front();
    if (lane.by_age.empty()) return lane.by_score.front();
    const BlockId aged = lane.by_age.front(), scored = lane.by_score.front();
    return worth_of(node(aged), now, worth_at_age) <= node(scored).worth.score ? aged : scored;
  }

  std::vector<Node> nodes_;  // [num_blocks]
  FreeBlockList blank_;      // without content, in the order they are handed out
  HeapIndex<ByAge> by_age_;  // of all lanes
  HeapIndex<ByScore> by_score_;
  std::vector<Lane> lanes_;
  std::int32_t num_free_;
  std::int64_t last_stamp_ = 0;
};

}  // namespace paged

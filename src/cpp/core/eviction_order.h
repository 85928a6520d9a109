// SPDX-License-Identifier: Apache-2.0
// The blocks nobody references, and which of them is handed out next: first those without content, then cached ones,
// least worth first. Only a block that no cached block continues can go, so what is cached is always reachable.
//
// Worth is an age (when the block was freed: least recently freed first) or a score that its owners were given. The two
// kinds are ordered apart; whoever asks for the victim says what a block of the first kind is worth at its age. Since
// whoever references a block references those before it, ages alone give the order of a plain list: a sequence that
// frees its blocks tail first has them evicted tail first.
//
// Every operation is O(1) or O(log of the number of cached paths) and allocates nothing.
#pragma once

#include <cstdint>
#include <tuple>
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

  std::int32_t num_free() const { return num_free_; }
  bool is_free(BlockId block) const { return node(block).is_free; }
  bool is_cached(BlockId block) const { return node(block).is_cached; }

  void free(BlockId block, const BlockWorth& worth, double now);
  void take(BlockId block);
  // The block, in use, now has content that continues `parent`'s (kNoBlock: nothing before it).
  void enter(BlockId block, BlockId parent);
  // The content of a free block is forgotten. The block before it, if that is what may go next: reprice() it.
  BlockId leave(BlockId block);
  // What it is worth has changed. `forget`: nothing; it goes before all others of its kind.
  void reprice(BlockId block, const BlockWorth& worth, bool forget = false);

  // One is free. `worth_at_age`: the score of a block that goes by age, freed so many seconds before `now`.
  template <typename WorthAtAge>
  BlockId victim(double now, const WorthAtAge& worth_at_age) const {
    if (blank_.size() > 0) return blank_.front();
    if (by_score_.empty()) return by_age_.front();
    if (by_age_.empty()) return by_score_.front();
    const BlockId aged = by_age_.front();
    const bool first = node(aged).stamp == 0 ||
                       worth_at_age(now - node(aged).freed_at) <= std::get<0>(by_score_.key(by_score_.front()));
    return first ? aged : by_score_.front();
  }

  // Throws InternalError with what is wrong, in O(num_blocks).
  void check_integrity() const;

 private:
  struct Node {
    BlockId parent = kNoBlock;
    std::int32_t num_children = 0;
    bool is_free = true;
    bool is_cached = false;
    std::int64_t stamp = 0;  // counts frees; 0: worth nothing
    double freed_at = 0.0;
    BlockWorth worth = {};
  };
  using ByAge = std::pair<std::int64_t, BlockId>;
  using ByScore = std::tuple<double, std::int64_t, BlockId>;

  const Node& node(BlockId block) const { return nodes_[static_cast<std::size_t>(block)]; }
  Node& node(BlockId block) { return nodes_[static_cast<std::size_t>(block)]; }
  static bool may_go(const Node& node) { return node.is_free && node.is_cached && node.num_children == 0; }
  void insert(BlockId block);
  void remove(BlockId block);

  std::vector<Node> nodes_;  // [num_blocks]
  FreeBlockList blank_;      // without content, in the order they are handed out
  IndexedHeap<ByAge> by_age_;
  IndexedHeap<ByScore> by_score_;
  std::int32_t num_free_;
  std::int64_t last_stamp_ = 0;
};

}  // namespace paged

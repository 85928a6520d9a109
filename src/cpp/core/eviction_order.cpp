// SPDX-License-Identifier: Apache-2.0
#include "core/eviction_order.h"

#include "base/check.h"

namespace paged {

EvictionOrder::EvictionOrder(std::int32_t num_blocks)
    : nodes_(static_cast<std::size_t>(num_blocks)),
      blank_(num_blocks),
      by_age_(num_blocks),
      by_score_(num_blocks),
      num_free_(num_blocks) {
  add_lane();
  lanes_[0].by_age.reserve(num_blocks);
  lanes_[0].by_score.reserve(num_blocks);
}

std::int32_t EvictionOrder::add_lane() {
  lanes_.push_back({IndexedHeap(by_age_), IndexedHeap(by_score_)});
  return static_cast<std::int32_t>(lanes_.size()) - 1;
}

void EvictionOrder::set_lane(BlockId block, std::int32_t lane) {
  Node& moved = node(block);
  if (moved.lane == lane) return;
  const bool listed = may_go(moved);
  if (listed) remove(block);
  moved.lane = lane;
  if (listed) insert(block);
}

void EvictionOrder::free(BlockId block, const BlockWorth& worth, double now, bool keep_age) {
  Node& freed = node(block);
  freed.is_free = true;
  if (!keep_age) {
    freed.stamp = ++last_stamp_;
    freed.freed_at = now;
  }
  freed.worth = worth;
  ++num_free_;
  if (!freed.is_cached)
    blank_.push_front(block);
  else if (may_go(freed))
    insert(block);
}

void EvictionOrder::take(BlockId block) {
  Node& taken = node(block);
  if (!taken.is_cached)
    blank_.remove(block);
  else if (may_go(taken))
    remove(block);
  taken.is_free = false;
  --num_free_;
}

void EvictionOrder::enter(BlockId block, BlockId parent) {
  Node& entered = node(block);
  PAGED_INVARIANT(!entered.is_free && !entered.is_cached, "block ", block, " is free or cached, and cached now");
  entered.is_cached = true;
  entered.parent = parent;
  entered.depth = parent == kNoBlock ? 0 : depth(parent) + 1;
  if (parent == kNoBlock) return;
  PAGED_INVARIANT(!node(parent).is_free, "block ", block, " continues free block ", parent);
  ++node(parent).num_children;
}

BlockId EvictionOrder::leave(BlockId block) {
  Node& left = node(block);
  PAGED_INVARIANT(may_go(left), "block ", block, " may not go");
  remove(block);
  left.is_cached = false;
  blank_.push_front(block);
  const BlockId parent = left.parent;
  left.parent = kNoBlock;
  if (parent == kNoBlock) return kNoBlock;
  --node(parent).num_children;
  if (!may_go(node(parent))) return kNoBlock;
  insert(parent);
  return parent;
}

void EvictionOrder::reprice(BlockId block, const BlockWorth& worth, bool forget) {
  Node& priced = node(block);
  const bool listed = may_go(priced);
  if (listed) remove(block);
  priced.worth = worth;
  if (forget) priced.stamp = 0;
  if (listed) insert(block);
}

void EvictionOrder::insert(BlockId block) {
  const Node& inserted = node(block);
  if (inserted.worth.by_age)
    lane_of(block).by_age.push(block, {inserted.stamp, block});
  else
    lane_of(block).by_score.push(block, {inserted.worth.score, inserted.stamp, block});
}

void EvictionOrder::remove(BlockId block) {
  if (by_age_.contains(block))
    lane_of(block).by_age.remove(block);
  else
    lane_of(block).by_score.remove(block);
}

void EvictionOrder::check_integrity() const {
  std::vector<std::int32_t> num_children(nodes_.size());
  std::int32_t num_free = 0;
  std::size_t num_listed = 0;
  for (const Node& each : nodes_) {
    if (each.is_cached && each.parent != kNoBlock) ++num_children[static_cast<std::size_t>(each.parent)];
    num_free += each.is_free ? 1 : 0;
  }
  std::int32_t num_blank = 0;
  for (BlockId block = blank_.front(); block != blank_.end(); block = blank_.after(block), ++num_blank)
    PAGED_INVARIANT(node(block).is_free && !node(block).is_cached, "block ", block, " is not blank but listed so");
  for (BlockId block = 0; block < std::ssize(nodes_); ++block) {
    const Node& each = node(block);
    PAGED_INVARIANT(each.num_children == num_children[static_cast<std::size_t>(block)], "block ", block, " has ",
                    each.num_children, " cached children, counted ", num_children[static_cast<std::size_t>(block)]);
    PAGED_INVARIANT(each.num_children == 0 || each.is_cached, "block ", block, " is continued but not cached");
    const bool listed = by_age_.contains(block) || by_score_.contains(block);
    PAGED_INVARIANT(listed == may_go(each), "block ", block, " may ", may_go(each) ? "" : "not ", "go, is ",
                    listed ? "" : "not ", "listed");
    if (!each.is_free && each.parent != kNoBlock)
      PAGED_INVARIANT(!node(each.parent).is_free, "block ", block, " is in use, the one before it is free");
    num_listed += listed ? 1 : 0;
    num_blank -= each.is_free && !each.is_cached ? 1 : 0;
  }
  PAGED_INVARIANT(num_blank == 0, "blank blocks: the list is off by ", num_blank);
  std::size_t num_in_lanes = 0;
  for (const Lane& lane : lanes_) num_in_lanes += lane.by_age.size() + lane.by_score.size();
  PAGED_INVARIANT(num_listed == num_in_lanes, "blocks that may go: ", num_listed, " counted");
  PAGED_INVARIANT(num_free == num_free_, "free blocks: ", num_free, " counted, ", num_free_, " kept");
}

}  // namespace paged

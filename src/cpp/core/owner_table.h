// SPDX-License-Identifier: Apache-2.0
// Which sessions own which cached blocks. A session's path is what the cache holds of its tokens: the blocks from its
// first token on, without a gap. A block may have any number of owners, and owning is no reference: an unreferenced
// block can be evicted, which pops it from all its owners' paths. Memory grows with the paths and is reused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/types.h"

namespace paged {

class OwnerTable {
 public:
  explicit OwnerTable(std::int32_t num_blocks) : first_(static_cast<std::size_t>(num_blocks), kNone) {}

  void open(OwnerSlot slot) {
    if (at(slot) >= paths_.size()) paths_.resize(at(slot) + 1);
  }
  std::int32_t path_size(OwnerSlot slot) const { return static_cast<std::int32_t>(paths_[at(slot)].size()); }
  BlockId block_at(OwnerSlot slot, std::int32_t index) const { return entries_[at(paths_[at(slot)][at(index)])].block; }
  BlockId tail(OwnerSlot slot) const {
    return paths_[at(slot)].empty() ? kNoBlock : block_at(slot, path_size(slot) - 1);
  }
  bool has_owner(BlockId block) const { return first_[at(block)] != kNone; }
  std::int32_t num_owners(BlockId block) const {
    std::int32_t count = 0;
    for_each_owner(block, [&](OwnerSlot) { ++count; });
    return count;
  }

  template <typename Function>
  void for_each_owner(BlockId block, const Function& function) const {
    for (std::int32_t entry = first_[at(block)]; entry != kNone; entry = entries_[at(entry)].next)
      function(entries_[at(entry)].owner);
  }

  void append(OwnerSlot slot, BlockId block) {
    const std::int32_t entry = new_entry();
    std::int32_t& first = first_[at(block)];
    entries_[at(entry)] = {block, slot, kNone, first};
    if (first != kNone) entries_[at(first)].previous = entry;
    first = entry;
    paths_[at(slot)].push_back(entry);
  }

  BlockId pop(OwnerSlot slot) {
    const std::int32_t entry = paths_[at(slot)].back();
    paths_[at(slot)].pop_back();
    const Entry popped = entries_[at(entry)];
    if (popped.previous == kNone)
      first_[at(popped.block)] = popped.next;
    else
      entries_[at(popped.previous)].next = popped.next;
    if (popped.next != kNone) entries_[at(popped.next)].previous = popped.previous;
    unused_.push_back(entry);
    return popped.block;
  }

 private:
  static constexpr std::int32_t kNone = -1;
  struct Entry {
    BlockId block;
    OwnerSlot owner;
    std::int32_t previous;  // of the same block
    std::int32_t next;
  };

  template <typename Index>
  static std::size_t at(Index index) {
    return static_cast<std::size_t>(index);
  }
  std::int32_t new_entry() {
    if (unused_.empty()) {
      entries_.emplace_back();
      return static_cast<std::int32_t>(entries_.size()) - 1;
    }
    const std::int32_t entry = unused_.back();
    unused_.pop_back();
    return entry;
  }

  std::vector<Entry> entries_;
  std::vector<std::int32_t> unused_;
  std::vector<std::int32_t> first_;               // [num_blocks] entry of the latest owner
  std::vector<std::vector<std::int32_t>> paths_;  // [slots] entries
};

}  // namespace paged

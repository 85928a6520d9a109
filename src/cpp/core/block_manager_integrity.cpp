// SPDX-License-Identifier: Apache-2.0
// BlockManager::check_integrity: what must hold between any two calls.
#include "base/check.h"
#include "core/block_manager.h"

namespace paged {

void BlockManager::check_integrity() const {
  order_.check_integrity();
  for (BlockId block = 0; block < config_.num_blocks; ++block) {
    PAGED_INVARIANT(order_.is_free(block) == (num_references(block) == 0), "block ", block, " has ",
                    num_references(block), " references and is ", order_.is_free(block) ? "" : "not ", "free");
    PAGED_INVARIANT(order_.is_cached(block) == cache_.contains(block), "block ", block, " is cached or not, unordered");
  }
  cache_.check_integrity();
  check_owners();
}

void BlockManager::check_owners() const {
  std::vector<std::int32_t> num_holders(references_.size());
  for (OwnerSlot owner = 0; owner < std::ssize(scores_); ++owner) {
    ContentId parent = 0;
    for (std::int32_t i = 0; i < owners_.path_size(owner); ++i) {
      const BlockId block = owners_.block_at(owner, i);
      PAGED_INVARIANT(cache_.contains(block), "block ", block, " of a path is not cached");
      const ContentId before = cache_.parent_id(block);
      PAGED_INVARIANT(i == 0 ? SaltTable::is_root(before) : before == parent, "a path has a gap before block ", block);
      parent = cache_.content_id(block);
      num_holders[static_cast<std::size_t>(block)] += scores_[static_cast<std::size_t>(owner)].hold ? 1 : 0;
    }
  }
  std::int32_t num_held_free = 0;
  for (BlockId block = 0; block < config_.num_blocks; ++block)
    num_held_free += num_references(block) == 0 && num_holders[static_cast<std::size_t>(block)] > 0 ? 1 : 0;
  PAGED_INVARIANT(num_holders == num_holders_, "holders of blocks are miscounted");
  PAGED_INVARIANT(num_held_free == num_held_free_, "held free blocks: ", num_held_free, " counted, ", num_held_free_,
                  " kept");
}

void BlockManager::check_integrity(const Sequence& sequence) const {
  const auto num_held = static_cast<std::int32_t>(sequence.block_table.size());
  PAGED_INVARIANT(sequence.num_computed_tokens <= sequence.num_tokens(), "sequence ", sequence.id, " computed ",
                  sequence.num_computed_tokens, " of ", sequence.num_tokens(), " tokens");
  PAGED_INVARIANT(blocks_for(sequence.num_planned_tokens()) <= num_held, "sequence ", sequence.id, " computes ",
                  sequence.num_planned_tokens(), " tokens but holds ", num_held, " blocks");
  const std::int32_t num_full = sequence.num_computed_tokens / config_.block_size;
  PAGED_INVARIANT(sequence.num_sealed_blocks == num_cacheable_blocks(sequence, sequence.num_computed_tokens),
                  "sequence ", sequence.id, " sealed ", sequence.num_sealed_blocks, " of ", num_full, " full blocks");
  ContentId parent = sequence.root;
  for (std::int32_t i = 0; i < num_held; ++i) {
    const BlockId block = sequence.block_table[static_cast<std::size_t>(i)];
    PAGED_INVARIANT(num_references(block) > 0, "sequence ", sequence.id, " holds free block ", block);
    const bool is_sealed = i < sequence.num_sealed_blocks;
    const bool may_be_sealed_by_parent = i == num_full && sequence.num_scheduled_tokens == 0;
    PAGED_INVARIANT(cache_.contains(block) == is_sealed || (!is_sealed && may_be_sealed_by_parent), "block ", block,
                    " of sequence ", sequence.id, " is ",
                    is_sealed ? "sealed but not cached" : "cached but not sealed");
    if (!is_sealed) continue;
    PAGED_INVARIANT(cache_.find(parent, block_tokens(sequence, i)) == block, "block ", block,
                    " does not hold the tokens of sequence ", sequence.id);
    parent = cache_.content_id(block);
  }
}

}  // namespace paged

// SPDX-License-Identifier: Apache-2.0
// The part of the block manager that knows owners: paths, scores, what is held.
#include "core/block_manager.h"

namespace paged {

void BlockManager::open_owner(OwnerSlot owner) {
  owners_.open(owner);
  if (static_cast<std::size_t>(owner) >= scores_.size()) scores_.resize(static_cast<std::size_t>(owner) + 1);
  scores_[static_cast<std::size_t>(owner)] = {};
}

void BlockManager::truncate_owner(OwnerSlot owner, std::int32_t num_blocks) {
  const bool forget = policy_ != nullptr && policy_->forgets_superseded();
  while (owners_.path_size(owner) > num_blocks) disown_tail(owner, forget);
}

void BlockManager::share_owner(OwnerSlot parent, OwnerSlot child) {
  for (std::int32_t i = 0; i < owners_.path_size(parent); ++i) own(child, owners_.block_at(parent, i));
}

void BlockManager::set_score(OwnerSlot owner, const Score& score) {
  Score& kept = scores_[static_cast<std::size_t>(owner)];
  const bool holds = score.hold != kept.hold;
  kept = score;
  if (holds)
    for (std::int32_t i = 0; i < owners_.path_size(owner); ++i)
      count_holder(owners_.block_at(owner, i), score.hold ? 1 : -1);
  // Only the last block of a path may go; one before it gets its worth when that one has gone.
  const BlockId tail = owners_.tail(owner);
  if (tail != kNoBlock && order_.is_free(tail)) order_.reprice(tail, worth_of(tail));
}

BlockWorth BlockManager::worth_of(BlockId block) const {
  BlockWorth worth;
  owners_.for_each_owner(block, [&](OwnerSlot owner) {
    const Score& score = scores_[static_cast<std::size_t>(owner)];
    if (score.by_age) return;
    worth.by_age = false;
    worth.score += score.value;
  });
  return worth;
}

// A sequence's owner owns its first num_blocks blocks, which are cached.
void BlockManager::take_ownership(const Sequence& sequence, std::int32_t num_blocks) {
  if (sequence.owner == kNoOwner) {
    for (std::int32_t i = 0; i < num_blocks; ++i) {
      const BlockId block = sequence.block_table[static_cast<std::size_t>(i)];
      if (owners_.has_owner(block)) was_shared_[static_cast<std::size_t>(block)] = true;
    }
    return;
  }
  for (std::int32_t i = owners_.path_size(sequence.owner); i < num_blocks; ++i)
    own(sequence.owner, sequence.block_table[static_cast<std::size_t>(i)]);
}

void BlockManager::own(OwnerSlot owner, BlockId block) {
  const auto index = static_cast<std::size_t>(block);
  if (owners_.has_owner(block)) was_shared_[index] = true;
  owners_.append(owner, block);
  if (scores_[static_cast<std::size_t>(owner)].hold) count_holder(block, 1);
  if (order_.is_free(block)) order_.reprice(block, worth_of(block));
}

void BlockManager::disown_tail(OwnerSlot owner, bool forget) {
  const BlockId block = owners_.pop(owner);
  if (scores_[static_cast<std::size_t>(owner)].hold) count_holder(block, -1);
  const bool is_worthless = forget && !owners_.has_owner(block) && !was_shared_[static_cast<std::size_t>(block)];
  if (order_.is_free(block)) order_.reprice(block, worth_of(block), is_worthless);
}

void BlockManager::count_holder(BlockId block, std::int32_t change) {
  std::int32_t& count = num_holders_[static_cast<std::size_t>(block)];
  const bool before = count > 0;
  count += change;
  if (order_.is_free(block) && before != (count > 0)) num_held_free_ += count > 0 ? 1 : -1;
}

}  // namespace paged

// SPDX-License-Identifier: Apache-2.0
// BlockManager::check_integrity: what must hold between any two calls.
#include <algorithm>
#include <numeric>
#include <unordered_map>

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
  if (lower_ != nullptr) lower_->check_integrity();
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
      num_holders[static_cast<std::size_t>(block)] += i < held_length(owner) ? 1 : 0;
    }
  }
  std::int32_t num_held_free = 0;
  for (BlockId block = 0; block < config_.num_blocks; ++block)
    num_held_free += num_references(block) == 0 && num_holders[static_cast<std::size_t>(block)] > 0 ? 1 : 0;
  PAGED_INVARIANT(num_holders == num_holders_, "holders of blocks are miscounted");
  PAGED_INVARIANT(num_held_free == num_held_free_, "held free blocks: ", num_held_free, " counted, ", num_held_free_,
                  " kept");
  check_tenants();
}

void BlockManager::check_tenants() const {
  std::unordered_map<TenantSlot, TenantLedger::Account> counted;
  for (BlockId block = 0; block < config_.num_blocks; ++block) {
    const TenantSlot slot = block_tenants_[static_cast<std::size_t>(block)];
    PAGED_INVARIANT((slot != kNoTenant) == owners_.has_owner(block), "block ", block, " of tenant ", slot,
                    " is owned or not in disagreement");
    if (slot == kNoTenant) continue;
    owners_.for_each_owner(block, [&](OwnerSlot owner) {
      PAGED_INVARIANT(owner_tenants_[static_cast<std::size_t>(owner)] == slot, "block ", block, " of tenant ", slot,
                      " is owned by another's session");
    });
    ++counted[slot].num_owned;
    counted[slot].num_free += order_.is_free(block) ? 1 : 0;
  }
  std::int32_t num_protected = 0;
  for (auto& [slot, account] : counted) {
    const TenantLedger::Account& kept = tenants_.account(slot);
    PAGED_INVARIANT(account.num_owned == kept.num_owned && account.num_free == kept.num_free, "tenant '", kept.name,
                    "' owns ", account.num_owned, " blocks, kept ", kept.num_owned);
    num_protected += std::max(0, account.num_free - std::max(0, account.num_owned - kept.floor));
  }
  PAGED_INVARIANT(num_protected == tenants_.num_protected_from(kNoTenant), "protected blocks: ", num_protected,
                  " counted, ", tenants_.num_protected_from(kNoTenant), " kept");
  PAGED_INVARIANT(std::accumulate(leases_.begin(), leases_.end(), 0) == num_leased_, "leases: ", num_leased_, " kept");
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

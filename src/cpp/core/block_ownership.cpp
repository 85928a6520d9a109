// SPDX-License-Identifier: Apache-2.0
// The part of the block manager that knows owners: paths, scores, what is held.
#include <algorithm>
#include <limits>
#include <utility>

#include "core/block_manager.h"

namespace paged {

void BlockManager::open_owner(OwnerSlot owner, const std::string& tenant) {
  owners_.open(owner);
  const auto index = static_cast<std::size_t>(owner);
  if (index >= scores_.size()) {
    scores_.resize(index + 1);
    leases_.resize(index + 1);
    owner_tenants_.resize(index + 1);
  }
  scores_[index] = {};
  owner_tenants_[index] = tenants_.open(tenant);
}

void BlockManager::close_owner(OwnerSlot owner) {
  truncate_owner(owner, 0);
  set_score(owner, {});
  set_lease(owner, 0);
  tenants_.close(owner_tenants_[static_cast<std::size_t>(owner)]);
}

void BlockManager::truncate_owner(OwnerSlot owner, std::int32_t num_blocks) {
  const bool forget = policy_ != nullptr && policy_->forgets_superseded();
  while (owners_.path_size(owner) > num_blocks) disown_tail(owner, forget);
  reprice_tail(owner);  // what is left may be leased
}

void BlockManager::share_owner(OwnerSlot parent, OwnerSlot child) {
  for (std::int32_t i = 0; i < owners_.path_size(parent); ++i) own(child, owners_.block_at(parent, i));
}

void BlockManager::set_score(OwnerSlot owner, const Score& score) {
  const std::int32_t length = held_length(owner);
  scores_[static_cast<std::size_t>(owner)] = score;
  count_held(owner, length);
  reprice_tail(owner);
}

void BlockManager::set_lease(OwnerSlot owner, std::int32_t num_blocks) {
  const std::int32_t length = held_length(owner);
  num_leased_ += num_blocks - lease(owner);
  leases_[static_cast<std::size_t>(owner)] = num_blocks;
  count_held(owner, length);
  reprice_tail(owner);
}

std::int32_t BlockManager::held_length(OwnerSlot owner) const {
  return scores_[static_cast<std::size_t>(owner)].hold ? std::numeric_limits<std::int32_t>::max() : lease(owner);
}

void BlockManager::count_held(OwnerSlot owner, std::int32_t length_before) {
  const std::int32_t length = held_length(owner);
  const std::int32_t end = std::min(std::max(length, length_before), owners_.path_size(owner));
  for (std::int32_t i = std::min(length, length_before); i < end; ++i)
    count_holder(owners_.block_at(owner, i), length > length_before ? 1 : -1);
}

// Only the last block of a path may go; one before it gets its worth when that one has gone.
void BlockManager::reprice_tail(OwnerSlot owner) {
  const BlockId tail = owners_.tail(owner);
  if (tail != kNoBlock && order_.is_free(tail)) order_.reprice(tail, worth_of(tail));
}

std::int32_t BlockManager::set_floor(const std::string& tenant, std::int32_t num_blocks) {
  const TenantSlot slot = tenants_.open(tenant);  // open while its floor is set
  const TenantLedger::Account& account = tenants_.account(slot);
  const std::int32_t others = tenants_.sum_of_floors() - account.floor;
  const std::int32_t most = std::max(0, config_.num_blocks - config_.num_sequence_blocks - others);
  std::int32_t lane = account.lane;
  if (lane == 0 && num_blocks > 0 && most > 0) {
    if (lane_tenants_.size() > kMaxFloors) {
      tenants_.close(slot);
      return kNoRoom;
    }
    lane = order_.add_lane();
    lane_tenants_.push_back(slot);
    for (BlockId block = 0; block < config_.num_blocks; ++block)
      if (block_tenants_[static_cast<std::size_t>(block)] == slot) order_.set_lane(block, lane);
  }
  tenants_.set_floor(slot, std::min(num_blocks, most), lane);
  const std::int32_t floor = account.floor;
  tenants_.close(slot);
  return floor;
}

BlockWorth BlockManager::worth_of(BlockId block) const {
  BlockWorth worth;
  owners_.for_each_owner(block, [&](OwnerSlot owner) {
    const Score& score = scores_[static_cast<std::size_t>(owner)];
    const bool leased = lease(owner) > 0 && owners_.path_size(owner) <= lease(owner);
    if (score.by_age && !leased) return;
    worth.by_age = false;
    worth.score += leased ? std::numeric_limits<double>::infinity() : score.value;
  });
  return worth;
}

// A sequence's owner owns its first num_blocks blocks, which are cached; those before `first_new` it had before.
void BlockManager::take_ownership(const Sequence& sequence, std::int32_t first_new, std::int32_t num_blocks) {
  if (sequence.owner == kNoOwner) {
    for (std::int32_t i = first_new; i < num_blocks; ++i) {
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
  if (owners_.has_owner(block) || num_references(block) > 1) was_shared_[index] = true;
  if (!owners_.has_owner(block)) {
    const TenantSlot tenant = owner_tenants_[static_cast<std::size_t>(owner)];
    block_tenants_[index] = tenant;
    tenants_.own(tenant, order_.is_free(block));
    order_.set_lane(block, tenants_.account(tenant).lane);
  }
  if (owners_.path_size(owner) < held_length(owner)) count_holder(block, 1);
  owners_.append(owner, block);
  if (order_.is_free(block)) order_.reprice(block, worth_of(block));
}

void BlockManager::disown_tail(OwnerSlot owner, bool forget) {
  const BlockId block = owners_.pop(owner);
  const auto index = static_cast<std::size_t>(block);
  if (owners_.path_size(owner) < held_length(owner)) count_holder(block, -1);
  const bool is_unowned = !owners_.has_owner(block);
  if (is_unowned) {
    tenants_.disown(std::exchange(block_tenants_[index], kNoTenant), order_.is_free(block));
    order_.set_lane(block, 0);
  }
  const bool is_worthless = forget && is_unowned && !was_shared_[index];
  if (order_.is_free(block)) order_.reprice(block, worth_of(block), is_worthless);
}

void BlockManager::count_holder(BlockId block, std::int32_t change) {
  std::int32_t& count = num_holders_[static_cast<std::size_t>(block)];
  const bool before = count > 0;
  count += change;
  if (order_.is_free(block) && before != (count > 0)) num_held_free_ += count > 0 ? 1 : -1;
}

bool BlockManager::append_to_path(OwnerSlot owner, ContentId root, std::span<const TokenId> tokens,
                                  const std::function<void(BlockId)>& fill) {
  if (!config_.enable_prefix_caching) return false;
  const BlockId tail = owners_.tail(owner);
  const ContentId parent = tail == kNoBlock ? root : cache_.content_id(tail);
  const BlockId twin = cache_.find(parent, tokens);
  if (twin != kNoBlock) {
    own(owner, twin);
    return true;
  }
  Sequence taker;
  taker.owner = owner;
  const std::vector<BlockId> path = path_to(tail);
  for (const BlockId before : path) retain(before);  // lest it be the one that is taken
  const auto release_path = [&] {
    for (auto before = path.rbegin(); before != path.rend(); ++before) release(*before, true);
  };
  BlockId block = kNoBlock;
  if (num_free_blocks_for(taker) > num_held_free_) {
    block = allocate(taker);
    try {
      fill(block);
    } catch (...) {
      release(block);
      release_path();
      throw;
    }
    cache_block(block, parent, tokens, tail);
    own(owner, block);
    release(block);
  }
  release_path();
  return block != kNoBlock;
}

}  // namespace paged

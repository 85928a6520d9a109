// SPDX-License-Identifier: Apache-2.0
#include "core/block_manager.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace paged {
namespace {

const BlockManagerConfig& checked(const BlockManagerConfig& config) {
  PAGED_CHECK(config.num_blocks > 0, "num_blocks must be at least 1, got ", config.num_blocks);
  PAGED_CHECK(config.block_size > 0, "block_size must be at least 1, got ", config.block_size);
  PAGED_CHECK(std::int64_t{config.num_blocks} * config.block_size <= std::numeric_limits<std::int32_t>::max(),
              "num_blocks * block_size must fit 31 bits, got ", config.num_blocks, " * ", config.block_size,
              "; make the KV cache smaller");
  return config;
}

}  // namespace

BlockManager::BlockManager(const BlockManagerConfig& config, BlockHash hash, std::shared_ptr<const Policy> policy)
    : config_(checked(config)),
      references_(static_cast<std::size_t>(config.num_blocks)),
      copy_references_(references_.size()),
      num_holders_(references_.size()),
      was_shared_(references_.size()),
      order_(config.num_blocks),
      cache_(config.num_blocks, config.block_size, hash),
      policy_(std::move(policy)),
      owners_(config.num_blocks),
      block_tenants_(references_.size(), kNoTenant),
      num_leasable_(std::max(0, config.num_blocks - config.num_step_blocks)),
      pressure_{config.num_blocks, config.block_size} {
  if ((config.lower.host == 0 && config.lower.disk == 0) || !config.enable_prefix_caching) return;
  lower_ = std::make_unique<LowerTiers>(config.lower, cache_, hash, [this](const LowerTiers::Copy& copy) {
    return (policy_ == nullptr || policy_->keeps_by_age(Tier::kDisk, now_ - copy.used_at, pressure_)) &&
           is_worth_a_copy(copy.content, copy.depth + 1, Tier::kDisk);
  });
  pressure_.num_host_blocks = config.lower.host;
  pressure_.num_disk_blocks = config.lower.disk;
}

void BlockManager::set_now(double seconds) {
  now_ = seconds;
  if (lower_ == nullptr) return;
  lower_->set_now(seconds);
  fade_load_times();
}

bool BlockManager::admit(Sequence& sequence, std::int32_t num_spare_blocks, bool may_take_held) {
  PAGED_INVARIANT(sequence.block_table.empty(), "sequence ", sequence.id, " is admitted with blocks");
  const std::int32_t num_free = num_free_blocks_for(sequence);
  if (num_free <= num_spare_blocks) return false;  // the last token always needs one
  match_prefix(sequence);

  const auto num_matched = static_cast<std::int32_t>(sequence.block_table.size());
  std::int32_t num_revived = 0;
  std::int32_t num_held = num_held_free_;  // for others
  for (const BlockId block : sequence.block_table) {
    if (num_references(block) > 0) continue;
    ++num_revived;
    num_held -= num_holders_[static_cast<std::size_t>(block)] > 0 ? 1 : 0;
  }
  const std::int32_t num_new = blocks_for(sequence.num_tokens()) - num_matched;
  if (num_revived + num_new + num_spare_blocks + (may_take_held ? 0 : num_held) > num_free) {
    sequence.block_table.clear();
    return false;
  }
  for (const BlockId block : sequence.block_table) retain(block);  // before allocate() could evict one
  if (lower_ != nullptr && (waits_for_load(sequence) || waits_for_store(sequence, num_new))) {
    release_path(sequence.block_table, true);
    sequence.block_table.clear();
    return false;
  }
  take_ownership(sequence, 0, num_matched);
  for (std::int32_t i = 0; i < num_new; ++i) sequence.block_table.push_back(allocate(sequence));
  sequence.num_sealed_blocks = num_matched;
  sequence.num_computed_tokens = num_matched * config_.block_size;
  return true;
}

std::int32_t BlockManager::num_cached_tokens(Sequence& sequence) const {
  match_prefix(sequence);
  const auto num_matched = static_cast<std::int32_t>(sequence.block_table.size());
  sequence.block_table.clear();
  return num_matched * config_.block_size;
}

bool BlockManager::grow(Sequence& sequence, std::int32_t num_new_tokens, BlockCopies& copies) {
  const auto num_held = static_cast<std::int32_t>(sequence.block_table.size());
  const std::int32_t num_tokens = sequence.num_planned_tokens() + num_new_tokens;
  if (!sequence.may_share && num_tokens <= num_held * config_.block_size) return true;
  const std::int32_t first = sequence.num_planned_tokens() / config_.block_size;
  const std::int32_t num_missing = std::max(0, blocks_for(num_tokens) - num_held);
  const bool must_copy =
      sequence.may_share && first < num_held && !is_writable(sequence.block_table[static_cast<std::size_t>(first)]);
  if (num_missing + (must_copy ? 1 : 0) > num_free_blocks_for(sequence)) return false;
  if (must_copy) copy_on_write(sequence, static_cast<std::size_t>(first), copies);
  for (std::int32_t i = 0; i < num_missing; ++i) sequence.block_table.push_back(allocate(sequence));
  sequence.may_share = false;  // those behind it are its own
  return true;
}

std::int32_t BlockManager::num_cacheable_blocks(const Sequence& sequence, std::int32_t num_tokens) const {
  if (!config_.enable_prefix_caching) return 0;
  const std::int32_t limit = config_.cache_generated_tokens ? num_tokens : sequence.num_prompt_tokens;
  return std::min(num_tokens, limit) / config_.block_size;
}

void BlockManager::seal(Sequence& sequence, std::vector<BlockId>& retired) {
  if (sequence.num_computed_tokens - sequence.num_sealed_blocks * config_.block_size < config_.block_size) return;
  const std::int32_t num_full = num_cacheable_blocks(sequence, sequence.num_computed_tokens);
  while (sequence.num_sealed_blocks < num_full) seal_next(sequence, retired);
}

void BlockManager::share(Sequence& parent, Sequence& child) {
  PAGED_INVARIANT(child.block_table.empty(), "sequence ", child.id, " is forked into with blocks");
  // Blocks past the computed tokens hold nothing yet and stay the parent's alone.
  const auto num_shared = static_cast<std::ptrdiff_t>(blocks_for(parent.num_computed_tokens));
  child.block_table.assign(parent.block_table.begin(), parent.block_table.begin() + num_shared);
  for (const BlockId block : child.block_table) retain(block);
  child.num_sealed_blocks = parent.num_sealed_blocks;
  child.num_computed_tokens = parent.num_computed_tokens;
  parent.may_share = child.may_share = true;
}

void BlockManager::release(Sequence& sequence) {
  release_path(sequence.block_table);
  sequence.block_table.clear();
  sequence.num_sealed_blocks = 0;
  sequence.num_computed_tokens = 0;
  sequence.may_share = false;
}

void BlockManager::release_sources(const BlockCopies& copies) {
  for (const BlockId source : copies.sources) {
    --copy_references_[static_cast<std::size_t>(source)];
    release(source);
  }
}

void BlockManager::release_retired(const std::vector<BlockId>& retired) {
  for (const BlockId block : retired) release(block);
}

std::span<const TokenId> BlockManager::block_tokens(const Sequence& sequence, std::int32_t index) const {
  const auto size = static_cast<std::size_t>(config_.block_size);
  return std::span(sequence.tokens).subspan(static_cast<std::size_t>(index) * size, size);
}

BlockId BlockManager::allocate(const Sequence& sequence) {
  PAGED_INVARIANT(num_free_blocks() > 0, "no block is free");
  const auto worth_at_age = [&](double age) {
    return policy_ == nullptr ? 0.0 : policy_->score_by_age(age, pressure_);
  };
  const TenantSlot asking = tenant_of(sequence);
  const auto may_take = [&](std::int32_t lane) {
    return lane == 0 || tenants_.may_lose(lane_tenants_[static_cast<std::size_t>(lane)], asking);
  };
  const BlockId block = order_.victim(now_, worth_at_age, may_take);
  PAGED_INVARIANT(block != kNoBlock, "no block is free but those that floors protect");
  if (cache_.contains(block)) evict(block, sequence.id);
  order_.take(block);
  references(block) = 1;
  return block;
}

void BlockManager::evict(BlockId block, SequenceId by) {
  while (owners_.has_owner(block)) {
    OwnerSlot owner = kNoOwner;
    owners_.for_each_owner(block, [&](OwnerSlot each) { owner = each; });
    PAGED_INVARIANT(owners_.tail(owner) == block, "evicted block ", block, " is not the last of its owner's path");
    disown_tail(owner, false);
    if (on_eviction_) on_eviction_({owner, by});
  }
  const ContentId content = cache_.content_id(block);
  cache_.erase(block);
  if (lower_ != nullptr) lower_->left_device(content);
  was_shared_[static_cast<std::size_t>(block)] = false;
  const BlockId exposed = order_.leave(block);
  if (exposed != kNoBlock) order_.reprice(exposed, worth_of(exposed));
}

void BlockManager::retain(BlockId block) {
  if (references(block)++ > 0) return;
  order_.take(block);
  num_held_free_ -= num_holders_[static_cast<std::size_t>(block)] > 0 ? 1 : 0;
  const TenantSlot tenant = block_tenants_[static_cast<std::size_t>(block)];
  if (tenant != kNoTenant) tenants_.taken(tenant);
}

void BlockManager::release(BlockId block, bool keep_age) {
  PAGED_INVARIANT(num_references(block) > 0, "block ", block, " is freed twice");
  if (--references(block) > 0) return;
  order_.free(block, worth_of(block), now_, keep_age);
  num_held_free_ += num_holders_[static_cast<std::size_t>(block)] > 0 ? 1 : 0;
  const TenantSlot tenant = block_tenants_[static_cast<std::size_t>(block)];
  if (tenant != kNoTenant) tenants_.freed(tenant);
}

void BlockManager::release_path(std::span<const BlockId> path, bool keep_age) {
  for (auto block = path.rbegin(); block != path.rend(); ++block) release(*block, keep_age);
}

// References held for copies do not count: those of this step and of steps in flight read before anybody writes.
bool BlockManager::is_writable(BlockId block) const {
  return num_references(block) - copy_references_[static_cast<std::size_t>(block)] == 1 && !cache_.contains(block);
}

// Leading blocks whose tokens' logits nobody wants.
std::int32_t BlockManager::num_servable_blocks(const Sequence& sequence) const {
  const bool scores = sequence.next_scored < sequence.num_prompt_tokens;
  return num_cacheable_blocks(sequence, scores ? sequence.next_scored - 1 : sequence.num_tokens() - 1);
}

void BlockManager::match_prefix(Sequence& sequence) const {
  const std::int32_t num_candidates = num_servable_blocks(sequence);
  ContentId parent = sequence.root;
  for (std::int32_t i = 0; i < num_candidates; ++i) {
    const BlockId block = cache_.find(parent, block_tokens(sequence, i));
    if (block == kNoBlock) return;
    sequence.block_table.push_back(block);
    parent = cache_.content_id(block);
  }
}

void BlockManager::copy_on_write(Sequence& sequence, std::size_t index, BlockCopies& copies) {
  const BlockId source = sequence.block_table[index];
  sequence.block_table[index] = allocate(sequence);
  sequence.num_row_blocks = std::min(sequence.num_row_blocks, static_cast<std::int32_t>(index));
  ++copy_references_[static_cast<std::size_t>(source)];
  copies.sources.push_back(source);  // the sequence's reference passes to the copy
  copies.destinations.push_back(sequence.block_table[index]);
}

void BlockManager::seal_next(Sequence& sequence, std::vector<BlockId>& retired) {
  const std::int32_t index = sequence.num_sealed_blocks++;
  BlockId& block = sequence.block_table[static_cast<std::size_t>(index)];
  const ContentId parent =
      index == 0 ? sequence.root : cache_.content_id(sequence.block_table[static_cast<std::size_t>(index) - 1]);
  const std::span<const TokenId> tokens = block_tokens(sequence, index);
  const BlockId twin = cache_.find(parent, tokens);
  if (twin == kNoBlock) {
    cache_block(block, parent, tokens,
                index == 0 ? kNoBlock : sequence.block_table[static_cast<std::size_t>(index) - 1]);
  } else {
    retain(twin);
    retired.push_back(block);
    block = twin;
    sequence.num_row_blocks = std::min(sequence.num_row_blocks, index);
  }
  take_ownership(sequence, index, index + 1);
}

}  // namespace paged

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

BlockManager::BlockManager(const BlockManagerConfig& config, BlockHash hash)
    : config_(checked(config)),
      references_(static_cast<std::size_t>(config.num_blocks)),
      copy_references_(references_.size()),
      free_(config.num_blocks),
      cache_(config.num_blocks, config.block_size, hash) {}

bool BlockManager::admit(Sequence& sequence, std::int32_t num_spare_blocks) {
  PAGED_INVARIANT(sequence.block_table.empty(), "sequence ", sequence.id, " is admitted with blocks");
  if (num_free_blocks() <= num_spare_blocks) return false;  // the last token always needs one
  match_prefix(sequence);

  const auto num_matched = static_cast<std::int32_t>(sequence.block_table.size());
  const auto num_revived =
      static_cast<std::int32_t>(std::count_if(sequence.block_table.begin(), sequence.block_table.end(),
                                              [&](BlockId block) { return num_references(block) == 0; }));
  const std::int32_t num_new = blocks_for(sequence.num_tokens()) - num_matched;
  if (num_revived + num_new + num_spare_blocks > num_free_blocks()) {
    sequence.block_table.clear();
    return false;
  }
  for (const BlockId block : sequence.block_table) retain(block);  // before allocate() could evict one
  for (std::int32_t i = 0; i < num_new; ++i) sequence.block_table.push_back(allocate());
  sequence.num_sealed_blocks = num_matched;
  sequence.num_computed_tokens = num_matched * config_.block_size;
  return true;
}

bool BlockManager::grow(Sequence& sequence, std::int32_t num_new_tokens, BlockCopies& copies) {
  const auto num_held = static_cast<std::int32_t>(sequence.block_table.size());
  const std::int32_t first = sequence.num_planned_tokens() / config_.block_size;
  const std::int32_t num_missing = std::max(0, blocks_for(sequence.num_planned_tokens() + num_new_tokens) - num_held);
  const bool must_copy = first < num_held && !is_writable(sequence.block_table[static_cast<std::size_t>(first)]);
  if (num_missing + (must_copy ? 1 : 0) > num_free_blocks()) return false;
  if (must_copy) copy_on_write(sequence, static_cast<std::size_t>(first), copies);
  for (std::int32_t i = 0; i < num_missing; ++i) sequence.block_table.push_back(allocate());
  return true;
}

std::int32_t BlockManager::num_cacheable_blocks(const Sequence& sequence, std::int32_t num_tokens) const {
  if (!config_.enable_prefix_caching) return 0;
  const std::int32_t limit = config_.cache_generated_tokens ? num_tokens : sequence.num_prompt_tokens;
  return std::min(num_tokens, limit) / config_.block_size;
}

void BlockManager::seal(Sequence& sequence, std::vector<BlockId>& retired) {
  const std::int32_t num_full = num_cacheable_blocks(sequence, sequence.num_computed_tokens);
  while (sequence.num_sealed_blocks < num_full) seal_next(sequence, retired);
}

void BlockManager::share(const Sequence& parent, Sequence& child) {
  PAGED_INVARIANT(child.block_table.empty(), "sequence ", child.id, " is forked into with blocks");
  // Blocks past the computed tokens hold nothing yet and stay the parent's alone.
  const auto num_shared = static_cast<std::ptrdiff_t>(blocks_for(parent.num_computed_tokens));
  child.block_table.assign(parent.block_table.begin(), parent.block_table.begin() + num_shared);
  for (const BlockId block : child.block_table) retain(block);
  child.num_sealed_blocks = parent.num_sealed_blocks;
  child.num_computed_tokens = parent.num_computed_tokens;
}

void BlockManager::release(Sequence& sequence) {
  for (auto block = sequence.block_table.rbegin(); block != sequence.block_table.rend(); ++block) release(*block);
  sequence.block_table.clear();
  sequence.num_sealed_blocks = 0;
  sequence.num_computed_tokens = 0;
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

BlockId BlockManager::allocate() {
  PAGED_INVARIANT(num_free_blocks() > 0, "no block is free");
  const BlockId block = free_.front();
  free_.remove(block);
  if (cache_.contains(block)) cache_.erase(block);
  references(block) = 1;
  return block;
}

void BlockManager::retain(BlockId block) {
  if (references(block)++ == 0) free_.remove(block);
}

void BlockManager::release(BlockId block) {
  PAGED_INVARIANT(num_references(block) > 0, "block ", block, " is freed twice");
  if (--references(block) > 0) return;
  if (cache_.contains(block))
    free_.push_back(block);
  else
    free_.push_front(block);  // worth nothing: reuse it before anything cached is evicted
}

// References held for copies do not count: those of this step and of steps in flight read before anybody writes.
bool BlockManager::is_writable(BlockId block) const {
  return num_references(block) - copy_references_[static_cast<std::size_t>(block)] == 1 && !cache_.contains(block);
}

void BlockManager::match_prefix(Sequence& sequence) const {
  const bool scores = sequence.next_scored < sequence.num_prompt_tokens;
  const std::int32_t first_wanted = scores ? sequence.next_scored - 1 : sequence.num_tokens() - 1;
  const std::int32_t num_candidates = num_cacheable_blocks(sequence, first_wanted);
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
  sequence.block_table[index] = allocate();
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
    cache_.insert(block, parent, tokens);
    return;
  }
  retain(twin);
  retired.push_back(block);
  block = twin;
  sequence.num_row_blocks = std::min(sequence.num_row_blocks, index);
}

void BlockManager::check_integrity() const {
  std::vector<bool> is_free(references_.size());
  std::int32_t num_free = 0;
  for (BlockId block = free_.front(); block != free_.end(); block = free_.after(block), ++num_free) {
    const auto index = static_cast<std::size_t>(block);
    PAGED_INVARIANT(!is_free[index], "block ", block, " is in the free list twice");
    is_free[index] = true;
  }
  PAGED_INVARIANT(num_free == free_.size(), "free blocks: ", num_free, " counted, ", free_.size(), " kept");
  for (std::size_t block = 0; block < references_.size(); ++block)
    PAGED_INVARIANT(is_free[block] == (references_[block] == 0), "block ", block, " has ", references_[block],
                    " references and is ", is_free[block] ? "" : "not ", "in the free list");
  cache_.check_integrity();
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

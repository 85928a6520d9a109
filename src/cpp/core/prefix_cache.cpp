// SPDX-License-Identifier: Apache-2.0
#include "core/prefix_cache.h"

#include <algorithm>
#include <bit>
#include <unordered_set>

#include "base/check.h"

namespace paged {

std::uint64_t hash_block(ContentId parent, std::span<const TokenId> tokens) {
  constexpr std::uint64_t kMultiplier = 0x9E3779B97F4A7C15;  // 2^64 / golden ratio
  std::uint64_t hash = (parent ^ (parent >> 32)) * kMultiplier;
  for (const TokenId token : tokens) {
    hash = (hash ^ static_cast<std::uint32_t>(token)) * kMultiplier;
    hash ^= hash >> 29;
  }
  return hash ^ (hash >> 32);
}

PrefixCache::PrefixCache(std::int32_t num_blocks, std::int32_t block_size, BlockHash hash)
    : block_size_(static_cast<std::size_t>(block_size)),
      hash_(hash),
      entries_(static_cast<std::size_t>(num_blocks)),
      tokens_(entries_.size() * block_size_),
      buckets_(std::bit_ceil(2 * entries_.size()), kNoBlock) {}

std::span<const TokenId> PrefixCache::tokens(BlockId block) const {
  return {tokens_.data() + static_cast<std::size_t>(block) * block_size_, block_size_};
}

BlockId PrefixCache::find(ContentId parent, std::span<const TokenId> tokens) const {
  const std::uint64_t hash = hash_(parent, tokens);
  for (BlockId block = bucket(hash); block != kNoBlock; block = entry(block).next) {
    const Entry& candidate = entry(block);
    if (candidate.hash == hash && candidate.parent == parent &&
        std::equal(tokens.begin(), tokens.end(), this->tokens(block).begin()))
      return block;
  }
  return kNoBlock;
}

void PrefixCache::insert(BlockId block, ContentId parent, std::span<const TokenId> tokens, ContentId content) {
  PAGED_INVARIANT(!contains(block), "block ", block, " is cached already");
  PAGED_INVARIANT(tokens.size() == block_size_, "a cached block holds ", block_size_, " tokens, got ", tokens.size());
  const std::uint64_t hash = hash_(parent, tokens);
  std::copy(tokens.begin(), tokens.end(), tokens_.begin() + static_cast<std::ptrdiff_t>(block) * std::ssize(tokens));
  BlockId& head = bucket(hash);
  entries_[static_cast<std::size_t>(block)] = {content == kNoContent ? ++last_content_ : content, parent, hash, head};
  head = block;
  if (SaltTable::is_root(parent)) salts_.retain(parent);
  ++size_;
}

void PrefixCache::erase(BlockId block) {
  PAGED_INVARIANT(contains(block), "block ", block, " is not cached");
  Entry& erased = entries_[static_cast<std::size_t>(block)];
  BlockId* link = &bucket(erased.hash);
  while (*link != block) link = &entries_[static_cast<std::size_t>(*link)].next;
  *link = erased.next;
  if (SaltTable::is_root(erased.parent)) salts_.release(erased.parent);
  erased = Entry{};
  --size_;
}

void PrefixCache::check_integrity() const {
  std::unordered_set<ContentId> contents;
  for (BlockId block = 0; block < std::ssize(entries_); ++block) {
    if (!contains(block)) continue;
    PAGED_INVARIANT(contents.insert(content_id(block)).second, "content id ", content_id(block), " is used twice");
    PAGED_INVARIANT(find(parent_id(block), tokens(block)) == block, "block ", block, " is not found by its identity");
  }
  PAGED_INVARIANT(std::ssize(contents) == size_, "cached blocks: ", contents.size(), " counted, ", size_, " kept");
  for (BlockId block = 0; block < std::ssize(entries_); ++block) {
    if (!contains(block)) continue;
    const ContentId parent = parent_id(block);
    PAGED_INVARIANT(SaltTable::is_root(parent) ? salts_.num_uses(parent) > 0 : contents.contains(parent), "block ",
                    block, " is cached without its parent");
  }
}

}  // namespace paged

// SPDX-License-Identifier: Apache-2.0
// Which full blocks hold which content. The identity of a block is (content id of the block before it, its own
// tokens); the content id a block gets when it is cached is never used again, and the root of each salt is an id of
// its own. By induction two blocks of equal identity hold the same tokens after the same prefix under the same salt,
// so the cache is exact: a lookup compares parent and tokens, and a collision of hashes costs time, never a wrong hit.
//
// Knows nothing of references: the block manager never erases a block in use. find, insert and erase are O(block_size)
// with a chained table of fixed size that allocates nothing.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/salt_table.h"
#include "core/types.h"

namespace paged {

using BlockHash = std::uint64_t (*)(ContentId parent, std::span<const TokenId> tokens);

std::uint64_t hash_block(ContentId parent, std::span<const TokenId> tokens);

class PrefixCache {
 public:
  PrefixCache(std::int32_t num_blocks, std::int32_t block_size, BlockHash hash);

  // The block that holds exactly these block_size tokens after `parent`, or kNoBlock.
  BlockId find(ContentId parent, std::span<const TokenId> tokens) const;
  // Neither the block nor the identity may be cached already. `content`: the id that it has where else it is kept
  // (host_tier.h); 0: a new one.
  void insert(BlockId block, ContentId parent, std::span<const TokenId> tokens, ContentId content = 0);
  void erase(BlockId block);

  bool contains(BlockId block) const { return entry(block).content != kNoContent; }
  ContentId content_id(BlockId block) const { return entry(block).content; }
  ContentId parent_id(BlockId block) const { return entry(block).parent; }
  std::span<const TokenId> tokens(BlockId block) const;
  std::int32_t size() const { return size_; }
  template <typename Function>
  void for_each(const Function& function) const {
    for (BlockId block = 0; block < static_cast<BlockId>(entries_.size()); ++block)
      if (contains(block)) function(block);
  }

  SaltTable& salts() { return salts_; }
  const SaltTable& salts() const { return salts_; }

  // Throws InternalError unless every cached block is found under its identity, once, and its parent is cached too.
  void check_integrity() const;

 private:
  static constexpr ContentId kNoContent = 0;

  struct Entry {
    ContentId content = kNoContent;
    ContentId parent = kNoContent;
    std::uint64_t hash = 0;
    BlockId next = kNoBlock;  // in its bucket
  };

  const Entry& entry(BlockId block) const { return entries_[static_cast<std::size_t>(block)]; }
  BlockId& bucket(std::uint64_t hash) { return buckets_[hash & (buckets_.size() - 1)]; }
  BlockId bucket(std::uint64_t hash) const { return buckets_[hash & (buckets_.size() - 1)]; }

  std::size_t block_size_;
  BlockHash hash_;
  std::int32_t size_ = 0;
  ContentId last_content_ = kNoContent;
  std::vector<Entry> entries_;    // [num_blocks]
  std::vector<TokenId> tokens_;   // [num_blocks, block_size]
  std::vector<BlockId> buckets_;  // a power of two >= 2 * num_blocks: first block of each chain
  SaltTable salts_;
};

}  // namespace paged

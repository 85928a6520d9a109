// SPDX-License-Identifier: Apache-2.0
// Owns the pool's blocks: who references each, which are free, and (prefix_cache.h) what the full ones hold.
//
// A block is in use (references > 0) or in the free list, never both. Freeing a block does not forget its content: a
// free cached block is revived by the next hit, and evicted only when it is handed out again. Blocks without content
// are handed out first, then the least recently freed; a sequence frees its blocks tail first, so a block is always
// evicted before the one it continues. A cached block is never written: only a sequence's blocks past
// num_sealed_blocks are, and only while nobody else references them (copy-on-write).
//
// Steps may be in flight: the device runs them in order, so a block may be given new content by a later step as soon as
// it is free; whoever frees sees to it that no step in flight shows a free block.
//
// Every operation on a block is O(1) (O(block_size) where it hashes tokens) and allocates nothing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/free_block_list.h"
#include "core/prefix_cache.h"
#include "core/sequence.h"
#include "core/types.h"

namespace paged {

struct BlockManagerConfig {
  std::int32_t num_blocks = 0;
  std::int32_t block_size = 0;  // tokens
  bool enable_prefix_caching = true;
  bool cache_generated_tokens = true;  // false: only blocks of a sequence's prompt are cached and found
};

// Blocks to copy before the step writes its own keys and values. No block is both a source and a destination, so the
// copies may run in any order, or at once. Holds one reference on each source until release_sources() at the commit,
// lest the source be freed and handed out within the same step, or while a step in flight still reads it.
struct BlockCopies {
  std::vector<BlockId> sources;
  std::vector<BlockId> destinations;
};

class BlockManager {
 public:
  explicit BlockManager(const BlockManagerConfig& config, BlockHash hash = hash_block);

  // Gives a sequence that holds nothing all blocks for its tokens: the longest cached prefix, then new ones. No
  // token whose logits are wanted is served from the cache: the last one, and those before scored ones. Sets
  // num_computed_tokens. False, with nothing changed, unless `num_spare_blocks` would stay free.
  bool admit(Sequence& sequence, std::int32_t num_spare_blocks);

  // Makes the num_new_tokens positions after the planned ones writable: new blocks, and a copy of the first one if it
  // is shared or cached. False, with nothing changed, when too few blocks are free.
  bool grow(Sequence& sequence, std::int32_t num_new_tokens, BlockCopies& copies);

  // Caches the blocks that num_computed_tokens has filled since. One whose content another block already holds is
  // replaced by that block: where the kernels are batch invariant both hold the same bits. The replaced one is appended
  // to `retired`, with its reference, for steps in flight may still read it.
  void seal(Sequence& sequence, std::vector<BlockId>& retired);

  // The child, which holds nothing, references every block with computed tokens of the parent. A step in flight may
  // yet fill the last of them for the parent, which then seals it: the child copies it before it writes.
  void share(const Sequence& parent, Sequence& child);

  // Frees all blocks of the sequence; nothing of it is computed any more.
  void release(Sequence& sequence);

  void release_sources(const BlockCopies& copies);
  void release_retired(const std::vector<BlockId>& retired);

  // Every sequence holds its salt's root from creation to destruction.
  ContentId acquire_root(const std::string& salt) { return cache_.salts().acquire(salt); }
  void retain_root(ContentId root) { cache_.salts().retain(root); }
  void release_root(ContentId root) { cache_.salts().release(root); }

  std::int32_t blocks_for(std::int32_t num_tokens) const {
    return static_cast<std::int32_t>((std::int64_t{num_tokens} + config_.block_size - 1) / config_.block_size);
  }
  std::int32_t num_free_blocks() const { return free_.size(); }
  std::int32_t num_references(BlockId block) const { return references_[static_cast<std::size_t>(block)]; }
  const PrefixCache& cache() const { return cache_; }

  // Throws InternalError with what is wrong, in O(num_blocks): every block is free or in use, the cache is whole.
  void check_integrity() const;
  // The sequence's blocks are referenced, its sealed ones hold its tokens, and the others are not cached, but for one
  // that it is about to copy.
  void check_integrity(const Sequence& sequence) const;

 private:
  // Leading blocks of the first num_tokens tokens that may be cached.
  std::int32_t num_cacheable_blocks(const Sequence& sequence, std::int32_t num_tokens) const;
  std::int32_t& references(BlockId block) { return references_[static_cast<std::size_t>(block)]; }
  std::span<const TokenId> block_tokens(const Sequence& sequence, std::int32_t index) const;

  BlockId allocate();
  void retain(BlockId block);
  void release(BlockId block);
  bool is_writable(BlockId block) const;
  void match_prefix(Sequence& sequence) const;
  void copy_on_write(Sequence& sequence, std::size_t index, BlockCopies& copies);
  void seal_next(Sequence& sequence, std::vector<BlockId>& retired);

  BlockManagerConfig config_;
  std::vector<std::int32_t> references_;       // [num_blocks]
  std::vector<std::int32_t> copy_references_;  // [num_blocks] those of them that BlockCopies hold
  FreeBlockList free_;
  PrefixCache cache_;
};

}  // namespace paged

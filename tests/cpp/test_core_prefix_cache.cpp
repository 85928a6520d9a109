// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "base/check.h"
#include "check.h"
#include "core/free_block_list.h"
#include "core/prefix_cache.h"

namespace paged {
namespace {

std::uint64_t constant_hash(ContentId, std::span<const TokenId>) { return 7; }

TEST(free_list_keeps_order) {
  FreeBlockList list(4);
  CHECK_EQ(list.front(), 0);
  list.remove(0);
  list.remove(2);
  list.push_back(0);
  list.push_front(2);
  CHECK_EQ(list.size(), 4);
  std::vector<BlockId> order;
  for (BlockId block = list.front(); block != list.end(); block = list.after(block)) order.push_back(block);
  CHECK(order == (std::vector<BlockId>{2, 1, 3, 0}));
}

TEST(finds_only_equal_parent_and_tokens) {
  for (const BlockHash hash : {hash_block, BlockHash{constant_hash}}) {
    PrefixCache cache(4, 2, hash);
    const ContentId root = cache.salts().acquire("");
    const std::vector<TokenId> first{1, 2};
    const std::vector<TokenId> second{1, 3};
    cache.insert(0, root, first);
    cache.insert(3, root, second);
    cache.insert(1, cache.content_id(0), first);
    cache.check_integrity();
    CHECK_EQ(cache.find(root, first), 0);
    CHECK_EQ(cache.find(root, second), 3);
    CHECK_EQ(cache.find(cache.content_id(0), first), 1);
    CHECK_EQ(cache.find(cache.content_id(3), first), kNoBlock);
    CHECK_EQ(cache.find(root, std::vector<TokenId>{2, 1}), kNoBlock);
    cache.erase(3);
    CHECK_EQ(cache.find(root, second), kNoBlock);
    CHECK_EQ(cache.find(root, first), 0);
    cache.check_integrity();
  }
}

TEST(content_ids_are_never_reused) {
  PrefixCache cache(2, 1, hash_block);
  const ContentId root = cache.salts().acquire("");
  const std::vector<TokenId> tokens{5};
  cache.insert(0, root, tokens);
  const ContentId old_content = cache.content_id(0);
  cache.insert(1, old_content, tokens);
  cache.erase(0);
  cache.insert(0, root, tokens);
  CHECK(cache.content_id(0) != old_content);
  CHECK_EQ(cache.find(cache.content_id(0), tokens), kNoBlock, "the child of other content was found");
}

TEST(salts_never_share_and_are_forgotten_when_unused) {
  PrefixCache cache(2, 1, hash_block);
  const std::vector<TokenId> tokens{5};
  const ContentId alice = cache.salts().acquire("alice");
  const ContentId bob = cache.salts().acquire("bob");
  CHECK(alice != bob);
  CHECK_EQ(cache.salts().acquire("alice"), alice);
  cache.insert(0, alice, tokens);
  CHECK_EQ(cache.find(bob, tokens), kNoBlock);
  cache.salts().release(bob);
  cache.salts().release(alice);
  cache.salts().release(alice);
  CHECK_EQ(cache.salts().size(), 1u, "alice's block keeps the salt");
  CHECK_EQ(cache.salts().acquire("alice"), alice);
  cache.salts().release(alice);
  cache.erase(0);
  CHECK_EQ(cache.salts().size(), 0u);
  CHECK(cache.salts().acquire("alice") != alice);
}

TEST(integrity_check_sees_a_lost_parent) {
  PrefixCache cache(2, 1, hash_block);
  const ContentId root = cache.salts().acquire("");
  const std::vector<TokenId> tokens{5};
  cache.insert(0, root, tokens);
  cache.insert(1, cache.content_id(0), tokens);
  cache.check_integrity();
  cache.erase(0);
  CHECK_THROWS(cache.check_integrity(), InternalError, "without its parent");
  CHECK_THROWS(cache.erase(0), InternalError, "not cached");
}

}  // namespace
}  // namespace paged

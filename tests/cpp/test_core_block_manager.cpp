// SPDX-License-Identifier: Apache-2.0
// Random operations on a BlockManager against a naive model. The model's identity of a cached block is the ideal one,
// the salt and the whole prefix itself, and it predicts every block id, so it pins down the order of reuse as well.
#include <algorithm>
#include <list>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "base/check.h"
#include "check.h"
#include "core/block_manager.h"

namespace paged {
namespace {

std::uint64_t constant_hash(ContentId, std::span<const TokenId>) { return 7; }
std::uint64_t poor_hash(ContentId, std::span<const TokenId> tokens) { return static_cast<std::uint64_t>(tokens[0]); }

struct NaiveSequence {
  std::vector<BlockId> table;
  std::size_t num_computed = 0;
};

class NaiveBlocks {
 public:
  using Prefix = std::pair<std::string, std::vector<TokenId>>;

  NaiveBlocks(const BlockManagerConfig& config)
      : caching_(config.enable_prefix_caching), references_(at(config.num_blocks)) {
    size_ = at(config.block_size);
    for (BlockId block = 0; block < config.num_blocks; ++block) free_.push_back(block);
  }

  bool admit(NaiveSequence& sequence, const std::string& salt, const std::vector<TokenId>& tokens, std::size_t spare) {
    std::vector<BlockId> hits;
    while (caching_ && (hits.size() + 1) * size_ < tokens.size()) {
      const auto hit = cached_.find(prefix(salt, tokens, hits.size()));
      if (hit == cached_.end()) break;
      hits.push_back(hit->second);
    }
    std::size_t num_needed = (tokens.size() + size_ - 1) / size_ - hits.size();
    for (const BlockId block : hits) num_needed += references_[at(block)] == 0 ? 1 : 0;
    if (num_needed + spare > free_.size()) return false;
    for (const BlockId block : hits) retain(block);
    sequence.table = hits;
    sequence.num_computed = hits.size() * size_;
    while (sequence.table.size() * size_ < tokens.size()) sequence.table.push_back(allocate());
    return true;
  }

  bool grow(NaiveSequence& sequence, std::size_t num_new) {
    const std::size_t first = sequence.num_computed / size_;
    const std::size_t num_blocks = (sequence.num_computed + num_new + size_ - 1) / size_;
    const bool copy = first < sequence.table.size() && references_[at(sequence.table[first])] > 1;
    const std::size_t num_missing = std::max(num_blocks, sequence.table.size()) - sequence.table.size();
    if (num_missing + (copy ? 1 : 0) > free_.size()) return false;
    if (copy) {
      pinned.push_back(sequence.table[first]);
      sequence.table[first] = allocate();
    }
    while (sequence.table.size() < num_blocks) sequence.table.push_back(allocate());
    return true;
  }

  void compute(NaiveSequence& sequence, const std::string& salt, const std::vector<TokenId>& tokens,
               std::size_t count) {
    const std::size_t first = sequence.num_computed / size_;
    sequence.num_computed += count;
    for (std::size_t i = first; caching_ && (i + 1) * size_ <= sequence.num_computed; ++i) {
      const auto [position, is_new] = cached_.try_emplace(prefix(salt, tokens, i), sequence.table[i]);
      if (is_new) continue;
      retain(position->second);
      release(sequence.table[i]);
      sequence.table[i] = position->second;
    }
  }

  NaiveSequence fork(const NaiveSequence& parent) {
    NaiveSequence child = parent;
    child.table.resize((parent.num_computed + size_ - 1) / size_);
    for (const BlockId block : child.table) retain(block);
    return child;
  }

  void release(const NaiveSequence& sequence) {
    for (std::size_t i = sequence.table.size(); i-- > 0;) release(sequence.table[i]);
  }
  void release(BlockId block) {
    if (--references_[at(block)] > 0) return;
    free_.insert(is_cached(block) ? free_.end() : free_.begin(), block);
  }

  bool is_cached(BlockId block) const {
    return std::any_of(cached_.begin(), cached_.end(), [&](const auto& entry) { return entry.second == block; });
  }
  std::size_t num_free() const { return free_.size(); }
  int num_references(BlockId block) const { return references_[at(block)]; }

  std::vector<BlockId> pinned;

 private:
  static std::size_t at(std::int32_t value) { return static_cast<std::size_t>(value); }

  Prefix prefix(const std::string& salt, const std::vector<TokenId>& tokens, std::size_t block) const {
    return {salt, {tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>((block + 1) * size_)}};
  }
  void retain(BlockId block) {
    if (references_[at(block)]++ == 0) free_.remove(block);
  }
  BlockId allocate() {
    const BlockId block = free_.front();
    free_.pop_front();
    std::erase_if(cached_, [&](const auto& entry) { return entry.second == block; });
    references_[at(block)] = 1;
    return block;
  }

  bool caching_;
  std::size_t size_;
  std::vector<int> references_;
  std::list<BlockId> free_;
  std::map<Prefix, BlockId> cached_;
};

class RandomOperations {
 public:
  RandomOperations(unsigned seed, const BlockManagerConfig& config, BlockHash hash)
      : random_(seed), config_(config), real_(config, hash), naive_(config) {}

  void run(int num_operations) {
    for (int i = 0; i < num_operations; ++i) {
      const int choice = below(20);
      if (choice < 5 || living_.empty())
        admit();
      else if (choice < 14)
        compute(below(static_cast<int>(living_.size())));
      else if (choice < 16)
        fork(below(static_cast<int>(living_.size())));
      else
        release(below(static_cast<int>(living_.size())));
      compare();
    }
  }

 private:
  struct Pair {
    Sequence real;
    NaiveSequence naive;
    std::string salt;
  };

  int below(int limit) { return std::uniform_int_distribution<int>(0, limit - 1)(random_); }

  void admit() {
    Pair pair;
    pair.salt = std::vector<std::string>{"", "a", "b"}[static_cast<std::size_t>(below(3))];
    for (int i = 1 + below(5 * config_.block_size); i > 0; --i) pair.real.tokens.push_back(below(2));
    const int num_spare = below(3);
    pair.real.root = real_.acquire_root(pair.salt);
    const bool admitted = real_.admit(pair.real, num_spare);
    CHECK_EQ(admitted, naive_.admit(pair.naive, pair.salt, pair.real.tokens, static_cast<std::size_t>(num_spare)));
    if (admitted)
      living_.push_back(pair);
    else
      real_.release_root(pair.real.root);
  }

  // A prefill chunk, or one decode; in either case one step with its copies.
  void compute(int index) {
    Pair& pair = living_[static_cast<std::size_t>(index)];
    if (pair.real.num_computed_tokens == pair.real.num_tokens()) pair.real.tokens.push_back(below(2));
    const int count = 1 + below(pair.real.num_tokens() - pair.real.num_computed_tokens);
    BlockCopies copies;
    const bool grown = real_.grow(pair.real, count, copies);
    CHECK_EQ(grown, naive_.grow(pair.naive, static_cast<std::size_t>(count)));
    CHECK(copies.sources == naive_.pinned);
    for (const BlockId block : naive_.pinned) naive_.release(block);
    naive_.pinned.clear();
    real_.release_sources(copies);
    if (grown) {
      pair.real.num_computed_tokens += count;
      std::vector<BlockId> retired;
      real_.seal(pair.real, retired);
      real_.release_retired(retired);
      naive_.compute(pair.naive, pair.salt, pair.real.tokens, static_cast<std::size_t>(count));
    }
  }

  void fork(int index) {
    Pair child = living_[static_cast<std::size_t>(index)];
    Sequence& parent = living_[static_cast<std::size_t>(index)].real;
    child.real.block_table.clear();
    real_.retain_root(parent.root);
    real_.share(parent, child.real);
    child.naive = naive_.fork(living_[static_cast<std::size_t>(index)].naive);
    living_.push_back(child);
  }

  void release(int index) {
    Pair& pair = living_[static_cast<std::size_t>(index)];
    real_.release(pair.real);
    real_.release_root(pair.real.root);
    naive_.release(pair.naive);
    living_.erase(living_.begin() + index);
  }

  void compare() const {
    real_.check_integrity();
    CHECK_EQ(static_cast<std::size_t>(real_.num_free_blocks()), naive_.num_free());
    for (BlockId block = 0; block < config_.num_blocks; ++block) {
      CHECK_EQ(real_.num_references(block), naive_.num_references(block));
      CHECK_EQ(real_.cache().contains(block), naive_.is_cached(block));
    }
    for (const Pair& pair : living_) {
      real_.check_integrity(pair.real);
      CHECK(pair.real.block_table == pair.naive.table);
      CHECK_EQ(static_cast<std::size_t>(pair.real.num_computed_tokens), pair.naive.num_computed);
    }
  }

  std::mt19937 random_;
  BlockManagerConfig config_;
  BlockManager real_;
  NaiveBlocks naive_;
  std::vector<Pair> living_;
};

void run_seeds(const BlockManagerConfig& config, BlockHash hash) {
  for (unsigned seed = 0; seed < 8; ++seed) RandomOperations(seed, config, hash).run(2000);
}

TEST(equals_the_naive_model) {
  run_seeds({24, 4, true}, hash_block);
  run_seeds({9, 1, true}, hash_block);
  run_seeds({40, 2, true}, hash_block);
}

TEST(equals_the_naive_model_whatever_collides) {
  run_seeds({24, 4, true}, constant_hash);
  run_seeds({24, 2, true}, poor_hash);
}

TEST(equals_the_naive_model_without_a_prefix_cache) { run_seeds({24, 4, false}, hash_block); }

TEST(blocks_with_generated_tokens_are_cached_only_where_that_is_wanted) {
  for (const bool wanted : {false, true}) {
    BlockManager blocks({20, 4, true, wanted});
    Sequence first, second;
    for (TokenId token = 0; token < 14; ++token) first.tokens.push_back(token);
    second.tokens = first.tokens;
    first.num_prompt_tokens = 6;  // of blocks 0 and 1
    second.num_prompt_tokens = 14;
    first.root = second.root = blocks.acquire_root("");
    CHECK(blocks.admit(first, 0));
    first.num_computed_tokens = 14;
    std::vector<BlockId> retired;
    blocks.seal(first, retired);
    CHECK_EQ(first.num_sealed_blocks, wanted ? 3 : 1);
    CHECK(blocks.admit(second, 0));
    CHECK_EQ(second.num_computed_tokens, wanted ? 12 : 4, "found by a prompt");
    blocks.release(first);
    CHECK(blocks.admit(first, 0));
    CHECK_EQ(first.num_computed_tokens, wanted ? 12 : 4, "found again after preemption");
    // The second's prompt is cached whole, but to the first its end is not a prompt's.
    second.num_computed_tokens = 14;
    blocks.seal(second, retired);
    blocks.release(first);
    CHECK(blocks.admit(first, 0));
    CHECK_EQ(first.num_computed_tokens, wanted ? 12 : 4, "of another's prompt");
    blocks.check_integrity(first);
  }
}

TEST(impossible_sizes_are_refused) {
  CHECK_THROWS(BlockManager({0, 16, true}), std::invalid_argument, "num_blocks must be at least 1, got 0");
  CHECK_THROWS(BlockManager({4, 0, true}), std::invalid_argument, "block_size must be at least 1, got 0");
  CHECK_THROWS(BlockManager({1 << 28, 16, true}), std::invalid_argument, "make the KV cache smaller");
}

TEST(blocks_for_does_not_overflow) {
  BlockManager blocks({1, 64, true});
  CHECK_EQ(blocks.blocks_for(2147483647), 33554432);
  CHECK_EQ(blocks.blocks_for(0), 0);
  CHECK_EQ(blocks.blocks_for(64), 1);
  CHECK_EQ(blocks.blocks_for(65), 2);
}

}  // namespace
}  // namespace paged

// SPDX-License-Identifier: Apache-2.0
// Random operations on an EvictionOrder against a model that looks at every block for each victim.
#include <algorithm>
#include <random>
#include <vector>

#include "check.h"
#include "core/eviction_order.h"

namespace paged {
namespace {

struct NaiveBlock {
  bool is_free = true;
  bool is_cached = false;
  BlockId parent = kNoBlock;
  std::int64_t stamp = 0;
  double freed_at = 0.0;
  BlockWorth worth = {};
  std::int32_t lane = 0;
};

class RandomOrder {
 public:
  RandomOrder(unsigned seed, int num_lanes)
      : random_(seed), order_(kNumBlocks), naive_(kNumBlocks), is_allowed_(static_cast<std::size_t>(num_lanes), true) {
    for (int lane = 1; lane < num_lanes; ++lane) CHECK_EQ(order_.add_lane(), lane);
    for (BlockId block = kNumBlocks; block-- > 0;) blank_.push_back(block);
  }

  void run(int num_operations) {
    for (int i = 0; i < num_operations; ++i) {
      now_ += below(3);
      const int choice = below(10);
      if (choice < 4)
        allocate();
      else if (choice < 7)
        free_one();
      else if (choice < 8)
        revive_one();
      else if (choice < 9 || is_allowed_.size() == 1)
        reprice_one();
      else
        move_one();
      order_.check_integrity();
      CHECK_EQ(order_.num_free(), static_cast<std::int32_t>(
                                      std::count_if(naive_.begin(), naive_.end(), [](auto& b) { return b.is_free; })));
    }
    CHECK(num_evicted_ > 20, num_evicted_);
  }

 private:
  static constexpr std::int32_t kNumBlocks = 12;

  int below(int limit) { return std::uniform_int_distribution<int>(0, limit - 1)(random_); }
  NaiveBlock& naive(BlockId block) { return naive_[static_cast<std::size_t>(block)]; }

  bool is_leaf(BlockId block) const {
    return std::none_of(naive_.begin(), naive_.end(), [&](auto& b) { return b.is_cached && b.parent == block; });
  }
  static double worth_at_age(double age) { return 1.0 / (1.0 + age); }
  double value(const NaiveBlock& block) const {
    return block.worth.by_age ? worth_at_age(now_ - block.freed_at) : block.worth.score;
  }
  // Ages are ordered by age whatever they are worth, so the first of each kind are what is compared.
  BlockId first(bool by_age, std::int32_t lane) {
    BlockId best = kNoBlock;
    for (BlockId block = 0; block < kNumBlocks; ++block) {
      const NaiveBlock& each = naive(block);
      if (!each.is_free || !each.is_cached || !is_leaf(block) || each.worth.by_age != by_age || each.lane != lane)
        continue;
      const auto key = [&](const NaiveBlock& b) { return std::pair(by_age ? 0.0 : b.worth.score, b.stamp); };
      if (best == kNoBlock || key(each) < key(naive(best))) best = block;
    }
    return best;
  }
  BlockId victim() {
    if (!blank_.empty()) return blank_.back();
    BlockId best = kNoBlock;
    const auto key = [&](BlockId block) {
      const NaiveBlock& each = naive(block);
      return std::pair(each.worth.by_age && each.stamp == 0 ? -1.0 : value(each), each.stamp);
    };
    for (std::size_t lane = 0; lane < is_allowed_.size(); ++lane) {
      const BlockId block = is_allowed_[lane] ? victim_of(static_cast<std::int32_t>(lane)) : kNoBlock;
      if (block != kNoBlock && (best == kNoBlock || key(block) < key(best))) best = block;
    }
    return best;
  }
  BlockId victim_of(std::int32_t lane) {
    const BlockId aged = first(true, lane);
    const BlockId scored = first(false, lane);
    if (aged == kNoBlock || scored == kNoBlock) return std::max(aged, scored);
    return naive(aged).stamp == 0 || value(naive(aged)) <= value(naive(scored)) ? aged : scored;
  }

  // Takes the victim and gives it content that continues a block in use, if there is one.
  void allocate() {
    if (order_.num_free() == 0) return;
    for (std::size_t lane = 1; lane < is_allowed_.size(); ++lane) is_allowed_[lane] = below(3) > 0;
    const auto may_take = [&](std::int32_t lane) { return is_allowed_[static_cast<std::size_t>(lane)]; };
    const BlockId block = order_.victim(now_, worth_at_age, may_take);
    CHECK_EQ(block, victim());
    if (block == kNoBlock) return;
    if (naive(block).is_cached) {
      ++num_evicted_;
      const BlockId exposed = order_.leave(block);
      if (exposed != kNoBlock) CHECK(naive(exposed).is_free && exposed == naive(block).parent);
    } else {
      blank_.pop_back();
    }
    order_.take(block);
    naive(block) = {false, false, kNoBlock, 0, 0.0, {}, naive(block).lane};
    if (below(4) == 0) return;
    const BlockId parent = any_in_use(block);
    order_.enter(block, parent);
    naive(block).is_cached = true;
    naive(block).parent = parent;
  }

  BlockId any_in_use(BlockId except) {
    const BlockId block = below(kNumBlocks);
    const NaiveBlock& each = naive(block);
    return block != except && !each.is_free && each.is_cached ? block : kNoBlock;
  }

  // As sequences do: nothing that continues it may be in use.
  void free_one() {
    const BlockId block = below(kNumBlocks);
    NaiveBlock& freed = naive(block);
    const bool continued = std::any_of(naive_.begin(), naive_.end(),
                                       [&](auto& b) { return b.is_cached && b.parent == block && !b.is_free; });
    if (freed.is_free || continued) return;
    const BlockWorth worth = any_worth();
    order_.free(block, worth, now_);
    freed = {true, freed.is_cached, freed.parent, ++last_stamp_, now_, worth, freed.lane};
    if (!freed.is_cached) blank_.push_back(block);
  }

  void revive_one() {
    const BlockId block = below(kNumBlocks);
    if (!naive(block).is_free || !naive(block).is_cached) return;
    for (BlockId each = block; each != kNoBlock; each = naive(each).parent) {  // with all before it
      if (!naive(each).is_free) continue;
      order_.take(each);
      naive(each).is_free = false;
    }
  }

  void reprice_one() {
    const BlockId block = below(kNumBlocks);
    if (!naive(block).is_free) return;
    const BlockWorth worth = any_worth();
    const bool forget = worth.by_age && below(4) == 0 && first_forgotten_ == kNoBlock;
    if (forget) first_forgotten_ = block;
    order_.reprice(block, worth, forget);
    naive(block).worth = worth;
    if (forget) naive(block).stamp = 0;
  }

  void move_one() {
    const BlockId block = below(kNumBlocks);
    naive(block).lane = below(static_cast<int>(is_allowed_.size()));
    order_.set_lane(block, naive(block).lane);
  }

  BlockWorth any_worth() { return below(2) == 0 ? BlockWorth{} : BlockWorth{false, 0.1 * below(10)}; }

  std::mt19937 random_;
  EvictionOrder order_;
  std::vector<NaiveBlock> naive_;
  std::vector<BlockId> blank_;
  std::vector<bool> is_allowed_;  // [lanes] for whoever asks now; lane 0 always is
  std::int64_t last_stamp_ = 0;
  double now_ = 0.0;
  BlockId first_forgotten_ = kNoBlock;  // one only: the order among several of them is nobody's business
  int num_evicted_ = 0;
};

TEST(random_operations_agree_with_a_model) {
  for (unsigned seed = 0; seed < 200; ++seed) RandomOrder(seed, 1).run(300);
}
TEST(random_operations_in_lanes_agree_with_a_model) {
  for (unsigned seed = 0; seed < 200; ++seed) RandomOrder(seed, 3).run(500);
}

}  // namespace
}  // namespace paged

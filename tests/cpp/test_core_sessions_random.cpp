// SPDX-License-Identifier: Apache-2.0
// Random sessions, commands and requests under every policy, against the simulated pool: whatever is hinted, every turn
// generates what its prompt alone determines, everybody comes to an end, and integrity holds after every call.
#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "check.h"
#include "core/hazard_policy.h"
#include "core/policies.h"
#include "core_simulation.h"

namespace paged {
namespace {

using test::Simulation;

struct Totals {
  std::int64_t num_missed = 0, num_reused = 0;
  std::int64_t num_stored = 0, num_loaded = 0, num_from_disk = 0;
  std::int64_t num_unreadable = 0, num_unreadable_tokens = 0, num_cancelled = 0, num_prefetched = 0;
};

class RandomSessions {
 public:
  RandomSessions(unsigned seed, const SchedulerConfig& config)
      : random_(seed), config_(config), simulation_(config), fails_to_write_(seed % 4 == 3), is_timed_(seed % 2 == 1) {
    simulation_.scheduler.set_step_cost({1e-2, 1e-5});
  }

  void run(int num_steps) {
    for (int i = 0; i < num_steps; ++i) {
      now_ += std::exp(std::normal_distribution<double>(-2.0, 2.0)(random_));
      simulation_.scheduler.set_now(now_);
      command();
      if (config_.num_host_blocks + config_.num_disk_blocks > 0) move_blocks();
      if (below(4) == 0) add();
      if (below(40) == 0 && !simulation_.living.empty()) simulation_.remove(simulation_.living.begin()->first);
      simulation_.step();
      check_charges();
    }
    simulation_.run();
    CHECK_EQ(simulation_.scheduler.num_free_blocks(), config_.num_blocks);
    for (const SequenceSpec& spec : added_) {
      const auto finished = simulation_.finished.find(spec.id);
      if (finished == simulation_.finished.end()) continue;  // removed
      CHECK(finished->second.tokens == simulation_.expected(spec).tokens, "sequence ", spec.id);
    }
    for (const SessionId id : std::vector(open_)) close(id);
    simulation_.scheduler.check_integrity();
    CHECK_EQ(table().size(), 0u);
    CHECK_EQ(simulation_.scheduler.blocks().num_held_blocks(), 0);
  }

  void add_to(Totals& totals) const {
    totals.num_missed += num_missed_tokens_;
    totals.num_reused += simulation_.scheduler.num_cached_tokens();
    totals.num_stored += simulation_.device.num_blocks_stored;
    totals.num_loaded += simulation_.device.num_blocks_loaded;
    totals.num_from_disk += simulation_.scheduler.blocks().traffic(Tier::kDisk).num_loaded;
    totals.num_unreadable += num_unreadable_;
    totals.num_unreadable_tokens += num_unreadable_tokens_;
    totals.num_cancelled += num_cancelled_;
    totals.num_prefetched += num_prefetched_;
  }

 private:
  int below(int limit) { return std::uniform_int_distribution<int>(0, limit - 1)(random_); }
  SessionTable& table() { return simulation_.scheduler.sessions(); }
  SessionId any() { return open_[static_cast<std::size_t>(below(static_cast<int>(open_.size())))]; }

  void command() {
    if (open_.empty() || (open_.size() < 8 && below(6) == 0)) {
      open_.push_back(simulation_.scheduler.open_session({std::string(below(2) ? "s" : ""), 1.0 + below(3)}));
      return;
    }
    const SessionId id = any();
    const double seconds = std::exp(std::normal_distribution<double>(0.0, 3.0)(random_));
    const auto length = static_cast<std::int32_t>(table().find(id)->tokens.size());
    switch (below(12)) {
      case 0: close(id); break;
      case 1: fork(id); break;
      case 2: table().rewind(id, below(length + 2), below(4) == 0 ? below(length + 2) : 0); break;
      case 3:
        if (below(2))
          table().pin(id, seconds, below(20));
        else
          table().set_floor(below(2) ? "s" : "", below(12));
        break;
      case 4: table().progress(id, 0.01 * (1 + below(100))); break;
      case 5: table().eta(id, seconds); break;
      case 6:
      case 7: table().pause(id, std::string(1, static_cast<char>('a' + below(3))), expectation(seconds)); break;
      default: turn(id, length);
    }
  }

  void move_blocks() {
    if (!open_.empty() && below(2)) {
      const SessionId id = any();
      if (below(2)) {
        const std::int32_t num_prefetched = table().prefetch(id).num_blocks;
        num_prefetched_ += num_prefetched;
        simulation_.scheduler.check_integrity();
        if (num_prefetched > 0 && below(2)) below(2) ? table().demote(id) : table().rewind(id, 1);
      } else {
        table().demote(id, below(2) ? Tier::kHost : Tier::kDisk);
      }
    }
    simulation_.begin_transfers();
    if (!simulation_.transfers.empty() && below(3) == 0) end_transfer();
  }

  // Any of them: cancelled ones wherever they are, some others with an error of the disk.
  void end_transfer() {
    const auto index = static_cast<std::size_t>(below(static_cast<int>(simulation_.transfers.size())));
    const BlockTransfer& transfer = simulation_.transfers[index];
    const auto count = static_cast<int>(transfer.copies.size());
    const int last = below(count);
    // Of the odd seeds some loads take longer than computing does.
    const double seconds = is_timed_ ? std::exp(std::normal_distribution<double>(-4.0, 2.0)(random_)) : 0.0;
    const auto& [from, to] = transfer.copies[static_cast<std::size_t>(last)];
    if (from.tier == Tier::kDisk && below(4) == 0) {
      ++num_unreadable_;
      simulation_.end_transfer(index, last, "unreadable", seconds);
    } else if (to.tier == Tier::kDisk && fails_to_write_ && below(60) == 0) {
      simulation_.end_transfer(index, last, "full");
      CHECK_EQ(simulation_.scheduler.blocks().write_error(), "full");
    } else if (simulation_.cancelled.contains(transfer.id)) {
      num_cancelled_ += last < count ? 1 : 0;
      simulation_.end_transfer(index, last, "", seconds);
    } else {
      simulation_.end_transfer(index, count, "", seconds);
    }
  }

  Expectation expectation(double seconds) {
    if (below(3) == 0) return {};
    if (below(2) == 0) return {{{0.5, seconds}}};
    return {{{0.1, seconds / 2}, {0.9, seconds * 3}}};
  }

  int limit() const { return std::min(config_.max_model_len, config_.num_blocks * config_.block_size); }

  void turn(SessionId id, std::int32_t length) {
    if (!table().may_begin_turn(id) || length + 10 >= limit()) return;
    SequenceSpec spec{.id = next_id_++, .session = id};
    for (int i = 1 + below(std::min(12, limit() - length - 2)); i > 0; --i)
      spec.prompt.push_back(below(8) == 0 ? 1 : 0);
    spec.stop.max_total_tokens = length + static_cast<std::int32_t>(spec.prompt.size()) + 1 + below(6);
    spec.keeps_answer = below(4) != 0;
    added_.push_back(simulation_.add_turn(spec));
  }

  void add() {
    SequenceSpec spec{.id = next_id_++};
    for (int i = 1 + below(std::min(25, limit() - 1)); i > 0; --i) spec.prompt.push_back(below(8) == 0 ? 1 : 0);
    spec.stop.max_total_tokens = static_cast<std::int32_t>(spec.prompt.size()) + 1 + below(6);
    simulation_.add(spec);
    added_.push_back(spec);
  }

  void fork(SessionId id) {
    const bool may = table().may_begin_turn(id);
    const SessionId child = simulation_.scheduler.fork_session(id);
    CHECK_EQ(child != 0, may);
    if (may) open_.push_back(child);
  }

  void close(SessionId id) {
    for (const Miss& miss : table().report(id).misses) {
      num_missed_tokens_ += miss.num_tokens;
      num_unreadable_tokens_ += miss.cause == MissCause::kUnreadable ? miss.num_tokens : 0;
    }
    const bool waits = table().may_begin_turn(id);
    CHECK(table().close(id).status == (waits ? ReceiptStatus::kAccepted : ReceiptStatus::kDeferred));
    if (waits) CHECK(table().close(id).status == ReceiptStatus::kRejected, "closed twice");
    std::erase(open_, id);
  }

  // What sessions are charged adds up to the blocks that any of them owns.
  void check_charges() {
    double charged = 0.0;
    for (const SessionId id : open_) charged += table().report(id).num_charged_blocks;
    std::set<BlockId> owned;
    const OwnerTable& owners = simulation_.scheduler.blocks().owners();
    for (const SessionId id : open_) {
      const OwnerSlot slot = table().find(id)->slot;
      for (std::int32_t i = 0; i < owners.path_size(slot); ++i) owned.insert(owners.block_at(slot, i));
    }
    if (table().size() == open_.size()) CHECK(std::abs(charged - static_cast<double>(owned.size())) < 1e-6, charged);
  }

  std::mt19937 random_;
  SchedulerConfig config_;
  Simulation simulation_;
  std::vector<SessionId> open_;
  std::vector<SequenceSpec> added_;  // with the whole prompt
  SequenceId next_id_ = 1;
  double now_ = 0.0;
  std::int64_t num_missed_tokens_ = 0;
  std::int64_t num_unreadable_tokens_ = 0;
  std::int64_t num_unreadable_ = 0;
  std::int64_t num_cancelled_ = 0;
  std::int64_t num_prefetched_ = 0;
  bool fails_to_write_;
  bool is_timed_;
};

template <typename MakePolicy>
Totals run_all_seeds(const MakePolicy& make_policy, std::int32_t num_blocks, const TierSizes& lower) {
  Totals totals;
  for (unsigned seed = 0; seed < 12; ++seed) {
    SchedulerConfig config{.num_blocks = num_blocks,
                           .block_size = 3,
                           .max_num_sequences = 5,
                           .max_num_batched_tokens = 16,
                           .max_model_len = 80,
                           .max_wait_steps = 20};
    config.max_steps_in_flight = 1 + static_cast<std::int32_t>(seed % 3);
    config.policy = make_policy();
    config.num_host_blocks = lower.host;
    config.num_disk_blocks = lower.disk;
    RandomSessions sessions(seed, config);
    sessions.run(400);
    sessions.add_to(totals);
  }
  return totals;
}

template <typename MakePolicy>
Totals run_seeds(const MakePolicy& make_policy, std::int32_t num_blocks, const TierSizes& lower = {}) {
  const Totals totals = run_all_seeds(make_policy, num_blocks, lower);
  CHECK(totals.num_reused > 1000, totals.num_reused);
  if (lower.host + lower.disk > 0) {
    CHECK(totals.num_stored > 1000, totals.num_stored);
    CHECK(totals.num_loaded > 20, totals.num_loaded);
    if (lower.host + lower.disk > 30) CHECK(totals.num_cancelled > 0);
  } else if (num_blocks < 100) {
    CHECK(totals.num_missed > 100, totals.num_missed);
  }
  return totals;
}

TEST(random_sessions_under_lru) {
  run_seeds([] { return std::make_shared<LruPolicy>(); }, 40);
}
TEST(random_sessions_with_a_host_tier) {
  for (const std::int32_t host : {3, 30, 300})
    run_seeds([] { return std::make_shared<HazardPolicy>(); }, 40, {.host = host});
}
TEST(random_sessions_with_a_host_tier_and_a_disk) {
  std::int64_t num_unreadable_tokens = 0;
  for (const TierSizes lower : {TierSizes{0, 300}, {3, 5}, {5, 40}, {20, 300}, {300, 20}}) {
    const Totals totals = run_seeds([] { return std::make_shared<HazardPolicy>(); }, 40, lower);
    CHECK(totals.num_from_disk > 5, totals.num_from_disk);
    CHECK(totals.num_unreadable > 0);
    num_unreadable_tokens += totals.num_unreadable_tokens;
  }
  CHECK(num_unreadable_tokens > 0, "nobody was told why");
}
// Where those that run, transfers, leases and floors leave few blocks free, or none.
TEST(random_sessions_that_prefetch_into_small_pools) {
  std::int64_t num_prefetched = 0;
  for (const std::int32_t num_blocks : {6, 9, 13, 20})
    for (const TierSizes lower : {TierSizes{60, 0}, {0, 60}, {8, 60}})
      num_prefetched +=
          run_all_seeds([] { return std::make_shared<HazardPolicy>(); }, num_blocks, lower).num_prefetched;
  CHECK(num_prefetched > 200, num_prefetched);
}
TEST(random_sessions_under_lru_with_tiers) {
  run_seeds([] { return std::make_shared<LruPolicy>(); }, 40, {.host = 60});
  run_seeds([] { return std::make_shared<LruPolicy>(); }, 40, {10, 60});
}
TEST(random_sessions_under_ttl) {
  run_seeds([] { return std::make_shared<TtlPolicy>(1.0); }, 40);
}
TEST(random_sessions_under_priority) {
  run_seeds([] { return std::make_shared<PriorityPolicy>(); }, 40);
}
TEST(random_sessions_under_hazard) {
  run_seeds([] { return std::make_shared<HazardPolicy>(); }, 40);
}
TEST(random_sessions_under_hazard_with_room) {
  run_seeds([] { return std::make_shared<HazardPolicy>(); }, 600);
}
TEST(random_sessions_with_clairvoyance) {
  run_seeds([] { return std::make_shared<ClairvoyantPolicy>(); }, 40);
}

}  // namespace
}  // namespace paged

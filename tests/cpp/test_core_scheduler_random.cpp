// SPDX-License-Identifier: Apache-2.0
// Random requests, forks and cancels against the simulated pool, at random moments and with one, two or three steps in
// flight; integrity is checked after every call.
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core_simulation.h"

namespace paged {
namespace {

using test::Simulation;

std::uint64_t constant_hash(ContentId, std::span<const TokenId>) { return 7; }

class RandomTraffic {
 public:
  RandomTraffic(unsigned seed, const SchedulerConfig& config, BlockHash hash)
      : random_(seed), config_(config), simulation_(config, hash) {}

  void run(int num_steps) {
    for (int i = 0; i < num_steps; ++i) {
      if (below(3) == 0) add();
      if (below(15) == 0) fork();
      if (below(25) == 0) remove();
      if (below(2) == 0) answer();
      const int choice = below(4);
      if (choice == 0 && simulation_.can_launch())
        simulation_.launch();
      else if (choice == 1 && simulation_.can_commit())
        simulation_.commit();
      else
        simulation_.step(below(20) == 0 ? any_living() : ~SequenceId{0});
    }
    simulation_.run();
    CHECK_EQ(simulation_.scheduler.num_free_blocks(), config_.num_blocks);
    CHECK_EQ(simulation_.scheduler.blocks().cache().salts().size() <= 3, true);
    for (const auto& [id, spec] : added_) {
      const auto position = simulation_.finished.find(id);
      if (position == simulation_.finished.end()) continue;  // removed
      const Simulation::Finished expected = simulation_.expected(spec);
      CHECK(position->second.tokens == expected.tokens, "sequence ", id);
      CHECK(position->second.reason == expected.reason, "sequence ", id);
    }
  }

  std::int64_t num_preemptions() const { return simulation_.scheduler.num_preemptions(); }
  std::int64_t num_cached_tokens() const { return simulation_.scheduler.num_cached_tokens(); }
  std::int64_t num_blocks_copied() const { return simulation_.device.num_blocks_copied; }

 private:
  int below(int limit) { return std::uniform_int_distribution<int>(0, limit - 1)(random_); }

  SequenceId any_living() {
    if (simulation_.living.empty()) return ~SequenceId{0};
    return std::next(simulation_.living.begin(), below(static_cast<int>(simulation_.living.size())))->first;
  }

  void add() {
    const int limit = std::min(config_.max_model_len, config_.num_blocks * config_.block_size);
    SequenceSpec spec{.id = next_id_++};
    for (int i = 1 + below(limit - 1); i > 0; --i) spec.prompt.push_back(below(8) == 0 ? 1 : 0);
    const auto num_prompt_tokens = static_cast<int>(spec.prompt.size());
    spec.stop.max_total_tokens = num_prompt_tokens + 1 + below(30);
    spec.stop.min_tokens = below(6);
    if (below(3) == 0) spec.stop.stop_token_ids = {below(3)};
    spec.priority = below(3);
    spec.cache_salt = std::string(static_cast<std::size_t>(below(3)), 's');
    if (below(3) == 0) spec.first_scored = 1 + below(num_prompt_tokens + 1);
    spec.asks = below(4) == 0;
    const bool later = spec.asks && below(2) == 0;
    simulation_.add(spec, later);
    if (later) simulation_.answer(spec.id);
    added_.emplace(spec.id, spec);
  }

  void fork() {
    if (simulation_.living.empty()) return;
    const SequenceId parent = any_living();
    const bool awaits = simulation_.scheduler.find(parent)->awaits_token;
    if (awaits)
      CHECK(!simulation_.scheduler.fork(parent, next_id_), "forked while it awaits a token");
    else
      simulation_.fork(parent, next_id_++);
  }
  void answer() {
    if (!simulation_.living.empty()) simulation_.answer(any_living());
  }
  void remove() {
    if (!simulation_.living.empty()) simulation_.remove(any_living());
  }

  std::mt19937 random_;
  SchedulerConfig config_;
  Simulation simulation_;
  std::map<SequenceId, SequenceSpec> added_;
  SequenceId next_id_ = 0;
};

struct Totals {
  std::int64_t num_preemptions = 0;
  std::int64_t num_cached_tokens = 0;
  std::int64_t num_blocks_copied = 0;
};

Totals run_seeds(SchedulerConfig config, BlockHash hash = hash_block) {
  Totals totals;
  for (unsigned seed = 0; seed < 24; ++seed) {
    config.max_steps_in_flight = 1 + static_cast<std::int32_t>(seed % 3);
    RandomTraffic traffic(seed, config, hash);
    traffic.run(400);
    totals.num_preemptions += traffic.num_preemptions();
    totals.num_cached_tokens += traffic.num_cached_tokens();
    totals.num_blocks_copied += traffic.num_blocks_copied();
  }
  return totals;
}

SchedulerConfig roomy() {
  return {
      .num_blocks = 200, .block_size = 4, .max_num_sequences = 8, .max_num_batched_tokens = 24, .max_model_len = 60};
}

SchedulerConfig tiny() {
  return {.num_blocks = 14, .block_size = 3, .max_num_sequences = 6, .max_num_batched_tokens = 10, .max_model_len = 50};
}

TEST(random_traffic_with_room) {
  const Totals totals = run_seeds(roomy());
  CHECK(totals.num_cached_tokens > 1000, totals.num_cached_tokens);
  CHECK(totals.num_blocks_copied > 10, totals.num_blocks_copied);
}

TEST(random_traffic_in_a_tiny_pool) {
  const Totals totals = run_seeds(tiny());
  CHECK(totals.num_preemptions > 100, totals.num_preemptions);
  CHECK(totals.num_blocks_copied > 10, totals.num_blocks_copied);
}

TEST(random_traffic_when_all_hashes_collide) { run_seeds(tiny(), constant_hash); }

TEST(random_traffic_without_a_prefix_cache) {
  SchedulerConfig config = tiny();
  config.enable_prefix_caching = false;
  const Totals totals = run_seeds(config);
  CHECK(totals.num_preemptions > 100, totals.num_preemptions);
  CHECK_EQ(totals.num_cached_tokens, 0);
}

TEST(random_traffic_at_the_limits) {
  SchedulerConfig config = tiny();
  config.block_size = 1;
  config.num_blocks = 30;
  config.max_wait_steps = 5;
  run_seeds(config);
  config = tiny();
  config.max_num_batched_tokens = 1;
  run_seeds(config);
  config = tiny();
  config.num_blocks = 1;
  config.block_size = 16;
  run_seeds(config);
}

}  // namespace
}  // namespace paged

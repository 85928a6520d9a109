// SPDX-License-Identifier: Apache-2.0
// Blocks that come back from below while little is free.
#include <memory>
#include <numeric>
#include <vector>

#include "check.h"
#include "core/policies.h"
#include "core_simulation.h"

namespace paged {
namespace {

constexpr std::int32_t kNumBlocks = 12;

SequenceSpec request(SequenceId id, std::int32_t num_blocks, std::int32_t num_generated) {
  SequenceSpec spec{.id = id, .prompt = std::vector<TokenId>(static_cast<std::size_t>(4 * num_blocks - num_generated))};
  std::iota(spec.prompt.begin(), spec.prompt.end(), static_cast<TokenId>(1000 * id));
  spec.stop.max_total_tokens = 4 * num_blocks;
  return spec;
}

const SchedulerConfig kWithHost = {.num_blocks = kNumBlocks,
                                   .block_size = 4,
                                   .max_num_sequences = 8,
                                   .max_num_batched_tokens = 64,
                                   .max_model_len = 400,
                                   .num_host_blocks = 40};

// A session of six blocks, stored on the host, of which a request of `num_taken` blocks has taken the last ones from
// the device.
SessionId session_on_host(test::Simulation& simulation, std::int32_t num_taken) {
  SessionTable& sessions = simulation.scheduler.sessions();
  const SessionId id = simulation.scheduler.open_session({"", 1.0});
  SequenceSpec turn = request(1, 6, 1);
  turn.session = id;
  simulation.add_turn(turn);
  simulation.run();
  for (int i = 0; i < 6; ++i) {  // as much at once as a share of the pool
    CHECK(sessions.demote(id, Tier::kHost).status != ReceiptStatus::kRejected);
    simulation.begin_transfers();
    while (!simulation.transfers.empty()) simulation.end_transfer();
  }
  simulation.add(request(2, num_taken, 1));
  simulation.run();
  return id;
}

// Prefetched while another request runs in `num_running` blocks. Blocks loaded.
std::int32_t prefetch_beside(std::int32_t num_taken, std::int32_t num_running) {
  test::Simulation simulation(kWithHost);
  SessionTable& sessions = simulation.scheduler.sessions();
  const SessionId id = session_on_host(simulation, num_taken);
  simulation.add(request(3, num_running, 3));
  while (simulation.scheduler.find(3)->num_computed_tokens == 0) simulation.step();

  const std::int32_t num_loaded = sessions.prefetch(id).num_blocks;
  simulation.scheduler.check_integrity();
  simulation.begin_transfers();
  simulation.run();
  CHECK_EQ(simulation.scheduler.blocks().traffic(Tier::kHost).num_loaded, num_loaded);
  return num_loaded;
}

// What is still on the device is held while the rest is loaded behind it, so that it is not free.
TEST(a_prefetch_takes_no_more_than_is_free_beside_what_it_continues) {
  std::int32_t num_loaded = 0;
  for (std::int32_t num_taken = 1; num_taken <= kNumBlocks; ++num_taken)
    for (std::int32_t num_running = 1; num_running <= kNumBlocks; ++num_running)
      num_loaded += prefetch_beside(num_taken, num_running);
  CHECK(num_loaded > 0);
}

// Else they are the first to go before the turn is admitted, and are loaded again and again.
TEST(what_is_loaded_for_a_turn_is_its_sessions_at_once) {
  test::Simulation simulation(kWithHost);
  SessionTable& sessions = simulation.scheduler.sessions();
  const SessionId id = session_on_host(simulation, kNumBlocks);
  const std::int32_t num_before = sessions.report(id).num_resident_blocks;
  SequenceSpec turn = request(3, 1, 1);
  turn.session = id;
  turn.stop.max_total_tokens = 100;
  simulation.add_turn(turn);
  CHECK(!simulation.launch(), "it waits for what is loaded");
  const auto num_loading = static_cast<std::int32_t>(simulation.transfers.front().copies.size());
  CHECK(num_loading > 0 && simulation.transfers.front().is_load());
  simulation.end_transfer();
  CHECK_EQ(sessions.report(id).num_resident_blocks, num_before + num_loading);
  CHECK(sessions.find(id)->state == SessionState::kQueued || sessions.find(id)->state == SessionState::kWaitsForRoom);
  simulation.run();
  CHECK_EQ(simulation.scheduler.blocks().traffic(Tier::kHost).num_loaded, num_loading);
}

// Turns of a session, each after others have taken its blocks; they come back from the tier in so many seconds for a
// block, or are computed: 1 ms a token. Blocks loaded for each turn.
class ComesBack {
 public:
  ComesBack(Tier tier, double block_seconds)
      : simulation_({.num_blocks = kNumBlocks,
                     .block_size = 4,
                     .max_num_sequences = 8,
                     .max_num_batched_tokens = 64,
                     .max_model_len = 400,
                     .num_host_blocks = tier == Tier::kHost ? 40 : 0,
                     .num_disk_blocks = tier == Tier::kDisk ? 40 : 0,
                     .policy = std::make_shared<LruPolicy>()}),
        tier_(tier),
        block_seconds_(block_seconds) {
    simulation_.scheduler.set_step_cost({1e-3, 0.0});
  }

  std::int64_t turn(double now) {
    simulation_.scheduler.set_now(now);
    const std::int64_t before = num_loaded();
    run(request(1000, 6, 1));  // the same prompt each time
    const std::int64_t loaded = num_loaded() - before;
    run(request(next_++, kNumBlocks, 1));
    return loaded;
  }

 private:
  std::int64_t num_loaded() const { return simulation_.scheduler.blocks().traffic(tier_).num_loaded; }

  void run(const SequenceSpec& spec) {
    SequenceSpec again = spec;
    again.id = next_++;
    simulation_.add(again);
    while (simulation_.scheduler.has_work()) {
      simulation_.launch();
      while (!simulation_.transfers.empty()) {
        const auto count = static_cast<std::int32_t>(simulation_.transfers.front().copies.size());
        simulation_.end_transfer(0, count, "", block_seconds_ * count);
      }
      if (simulation_.can_commit()) simulation_.commit();
    }
    CHECK(simulation_.finished.at(again.id).tokens == simulation_.expected(again).tokens);
  }

  test::Simulation simulation_;
  const Tier tier_;
  const double block_seconds_;
  SequenceId next_ = 1;
};

TEST(a_load_that_takes_longer_than_computing_is_not_made_again) {
  for (const Tier tier : {Tier::kHost, Tier::kDisk}) {
    ComesBack quick(tier, 1e-3), slow(tier, 5e-3);  // a block is computed in 4 ms
    CHECK_EQ(quick.turn(0.0), 0);
    CHECK_EQ(slow.turn(0.0), 0);
    for (int i = 1; i < 5; ++i) {
      CHECK(quick.turn(i) > 0, "turn ", i);
      CHECK_EQ(slow.turn(i) > 0, i == 1, "turn ", i);  // it is not known before
    }
    CHECK_EQ(slow.turn(10.0), 0);
    std::int64_t num_tried = 0;
    for (int i = 0; i < 4; ++i) num_tried += slow.turn(1e5 + i);
    CHECK(num_tried > 0, "a tier that was slow long ago is not tried again");
  }
}

}  // namespace
}  // namespace paged

// SPDX-License-Identifier: Apache-2.0
// Sessions in the scheduler: what commands do, what is evicted first, who waits, what is told of it.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "base/check.h"
#include "check.h"
#include "core/hazard_policy.h"
#include "core/policies.h"
#include "core_simulation.h"

namespace paged {
namespace {

using test::Simulation;

std::vector<TokenId> text(TokenId first, std::int32_t count) {
  std::vector<TokenId> tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), 1000 * first);
  return tokens;
}

class World {
 public:
  explicit World(std::int32_t num_blocks, std::shared_ptr<Policy> policy = std::make_shared<HazardPolicy>())
      : simulation({.num_blocks = num_blocks,
                    .block_size = 4,
                    .max_num_sequences = 8,
                    .max_num_batched_tokens = 64,
                    .max_model_len = 400,
                    .max_wait_steps = 50,
                    .policy = std::move(policy)}) {
    scheduler().set_step_cost({1e-2, 0.0});
  }

  Scheduler& scheduler() { return simulation.scheduler; }
  SessionTable& sessions() { return simulation.scheduler.sessions(); }
  SessionId open(double weight = 1.0) { return scheduler().open_session({"", weight}); }
  SessionReport report(SessionId id) { return sessions().report(id); }

  SequenceId begin(SessionId session, std::vector<TokenId> tokens, std::int32_t num_generated = 1) {
    const std::size_t known = sessions().find(session)->tokens.size() + tokens.size();
    SequenceSpec spec{.id = ++last_id_, .prompt = std::move(tokens), .session = session};
    spec.stop.max_total_tokens = static_cast<std::int32_t>(known) + num_generated;
    simulation.add_turn(spec);
    return last_id_;
  }
  void turn(SessionId session, std::vector<TokenId> tokens, std::int32_t num_generated = 1) {
    begin(session, std::move(tokens), num_generated);
    simulation.run();
  }
  // A request of nobody, which needs so many blocks.
  void squeeze(std::int32_t num_blocks) {
    SequenceSpec spec{.id = ++last_id_, .prompt = text(static_cast<TokenId>(last_id_) + 500, num_blocks * 4 - 1)};
    spec.stop.max_total_tokens = num_blocks * 4;
    simulation.add(spec);
    simulation.run();
  }
  void at(double seconds) { scheduler().set_now(seconds); }

  Simulation simulation;

 private:
  SequenceId last_id_ = 0;
};

TEST(a_turn_continues_the_session_and_finds_its_blocks) {
  World world(50);
  const SessionId session = world.open();
  world.turn(session, text(1, 20), 5);
  CHECK_EQ(world.sessions().find(session)->tokens.size(), 25u);
  world.turn(session, text(2, 6), 3);
  CHECK_EQ(world.sessions().find(session)->tokens.size(), 34u);
  CHECK_EQ(world.report(session).num_reused_tokens, 24);
  CHECK_EQ(world.report(session).num_turns, 2);
  CHECK(world.report(session).misses.empty());
}

TEST(a_session_that_waits_holds_nothing) {
  World world(50);
  const SessionId session = world.open();
  world.turn(session, text(1, 40));
  CHECK_EQ(world.scheduler().num_free_blocks(), 50);
  world.sessions().pin(session, 100.0, 50);
  CHECK_EQ(world.scheduler().num_free_blocks(), 50);
  world.squeeze(49);  // takes even what is pinned: nobody else has anything left
  CHECK(world.report(session).num_resident_blocks <= 1);
}

TEST(only_one_turn_at_a_time) {
  World world(50);
  const SessionId session = world.open();
  world.begin(session, text(1, 9), 3);
  CHECK_THROWS(world.begin(session, text(1, 2)), std::invalid_argument, "has a turn already");
  CHECK(world.sessions().rewind(session, 0).status == ReceiptStatus::kRejected);
  CHECK_EQ(world.scheduler().fork_session(session), 0u);
  world.simulation.run();
  CHECK(world.sessions().rewind(session, 0).status == ReceiptStatus::kAccepted);
}

TEST(close_is_idempotent_and_waits_for_the_turn) {
  World world(50);
  const SessionId session = world.open();
  world.turn(session, text(1, 9));
  world.begin(session, text(2, 9));
  CHECK(world.sessions().close(session).status == ReceiptStatus::kDeferred);
  world.simulation.run();
  CHECK(world.sessions().find(session) == nullptr);
  CHECK(world.sessions().close(session).status == ReceiptStatus::kRejected);
  CHECK(world.sessions().pause(session, "a", {}).status == ReceiptStatus::kRejected);
  CHECK_THROWS(world.report(session), std::invalid_argument, "is closed");
  CHECK(world.open() != session);
}

TEST(superseded_blocks_go_first) {
  World world(40);
  const SessionId older = world.open();
  const SessionId newer = world.open();
  world.turn(older, text(1, 40));
  world.turn(newer, text(2, 40));
  CHECK_EQ(world.sessions().rewind(newer, 16).num_blocks, 6);
  world.squeeze(25);  // 20 blank ones and 5 of the 6
  CHECK_EQ(world.report(older).num_resident_blocks, 10);
  CHECK_EQ(world.report(newer).num_resident_blocks, 4);
  world.turn(newer, text(3, 4));
  CHECK(world.report(newer).misses.empty(), "what is superseded is not missed");
}

TEST(what_others_share_outlives_its_first_owner) {
  World world(60);
  const SessionId first = world.open();
  const SessionId second = world.open();
  world.turn(first, text(1, 40));
  std::vector<TokenId> prompt = text(1, 40);
  prompt.push_back(7);
  world.turn(second, prompt);
  CHECK_EQ(world.report(second).num_reused_tokens, 40);
  CHECK(std::abs(world.report(first).num_charged_blocks - 5.0) < 1e-9, "ten blocks, of two");
  world.sessions().close(first);
  CHECK(std::abs(world.report(second).num_charged_blocks - 10.0) < 1e-9);
  world.sessions().close(second);
  const SessionId third = world.open();
  world.turn(third, prompt);
  CHECK_EQ(world.report(third).num_reused_tokens, 40);
}

TEST(a_fork_shares_all_and_parts_ways) {
  World world(60);
  const SessionId parent = world.open();
  world.turn(parent, text(1, 30), 3);
  const SessionId child = world.scheduler().fork_session(parent);
  CHECK(world.sessions().find(child)->tokens == world.sessions().find(parent)->tokens);
  world.turn(child, text(2, 10));
  world.turn(parent, text(3, 10));
  CHECK_EQ(world.report(child).num_reused_tokens, 32);
  CHECK_EQ(world.report(parent).num_reused_tokens, 32);
  world.sessions().close(parent);
  CHECK_EQ(world.report(child).num_resident_blocks, 10);
}

// Of two that wait alike, who is expected soon keeps its blocks.
TEST(who_is_expected_soon_keeps_its_blocks) {
  World world(40, std::make_shared<ClairvoyantPolicy>());
  const SessionId late = world.open();
  const SessionId soon = world.open();
  world.turn(soon, text(1, 40));
  world.turn(late, text(2, 40));
  world.sessions().pause(soon, "a", {{{0.5, 1.0}}});
  world.sessions().pause(late, "a", {{{0.5, 1000.0}}});
  world.squeeze(28);
  CHECK_EQ(world.report(soon).num_resident_blocks, 10);
  CHECK_EQ(world.report(late).num_resident_blocks, 2);
  world.sessions().eta(late, 0.1);
  world.squeeze(34);
  CHECK_EQ(world.report(soon).num_resident_blocks + world.report(late).num_resident_blocks, 6);
  CHECK_EQ(world.report(late).num_resident_blocks, 2);
}

TEST(a_lease_outlasts_the_rest_and_ends) {
  World world(40);
  const SessionId pinned = world.open();
  const SessionId other = world.open();
  world.turn(pinned, text(1, 40));
  world.turn(other, text(2, 40));
  world.sessions().pause(other, "a", {{{0.5, 0.1}}});
  const Receipt receipt = world.sessions().pin(pinned, 10.0);
  CHECK(receipt.status == ReceiptStatus::kAccepted && receipt.num_blocks == 10 && receipt.until == 10.0);
  CHECK(world.sessions().pin(other, 10.0, 0).status == ReceiptStatus::kRejected);
  CHECK(world.report(pinned).is_held);
  world.squeeze(28);
  CHECK_EQ(world.report(pinned).num_resident_blocks, 10);
  world.at(1000.0);
  CHECK(!world.report(pinned).is_held);
  CHECK_EQ(world.report(pinned).lease_left, 0.0);
}

// 40 blocks; a step of 64 tokens for 8 sequences may need 24 of them.
TEST(leases_leave_what_one_step_may_need) {
  World world(40);
  const SessionId first = world.open();
  const SessionId second = world.open();
  CHECK(world.sessions().pin(first, 10.0).status == ReceiptStatus::kRejected, "it has nothing yet");
  world.turn(first, text(1, 40));
  world.turn(second, text(2, 40));
  CHECK(world.sessions().pin(first, 10.0, 10).status == ReceiptStatus::kAccepted);
  const Receipt clipped = world.sessions().pin(second, 10.0, 10);
  CHECK(clipped.status == ReceiptStatus::kClipped && clipped.num_blocks == 6 && clipped.until == 10.0);
  CHECK(clipped.reason.find("wanted are 10 blocks") != std::string::npos, clipped.reason);
  const SessionId third = world.scheduler().fork_session(first);
  CHECK(world.sessions().pin(third, 10.0).status == ReceiptStatus::kRejected, "all that may be leased is");
  CHECK(world.sessions().pin(second, 20.0, 3).num_blocks == 3, "a lease replaces the one before");
  CHECK(world.sessions().pin(third, 10.0).num_blocks == 3);
  world.at(1000.0);
  CHECK(world.sessions().pin(third, 10.0).status == ReceiptStatus::kAccepted, "leases end");
}

TEST(the_first_blocks_of_a_path_may_be_leased_alone) {
  World world(40);
  const SessionId session = world.open();
  const SessionId other = world.open();
  world.turn(session, text(1, 40));
  world.turn(other, text(2, 40));
  world.at(1e6);  // nobody expects either of them any more
  CHECK(world.sessions().pin(session, 10.0, 4).status == ReceiptStatus::kAccepted);
  CHECK_EQ(world.scheduler().blocks().num_held_blocks(), 4);
  world.squeeze(36);
  CHECK_EQ(world.report(session).num_resident_blocks, 4);
  CHECK_EQ(world.report(other).num_resident_blocks, 0);
  CHECK(world.report(session).is_held);
}

TEST(a_pause_announced_in_a_turn_begins_when_it_ends) {
  World world(40);
  const SessionId session = world.open();
  world.begin(session, text(1, 9), 3);
  const Receipt receipt = world.sessions().pause(session, "a", {{{0.5, 7.0}}});
  CHECK(receipt.status == ReceiptStatus::kDeferred && receipt.reason == "when its turn has ended");
  world.simulation.step();
  CHECK(world.report(session).view.state == SessionState::kRunning);
  world.simulation.run();
  CHECK(world.report(session).view.state == SessionState::kPaused && world.report(session).view.tool == "a");
  world.turn(session, text(2, 2));
  CHECK(world.report(session).view.state == SessionState::kIdle, "announced once");
}

TEST(what_stands_behind_an_edit_is_a_miss_of_the_edit) {
  World world(60);
  const SessionId session = world.open();
  world.turn(session, text(1, 40));  // 41 with the answer, 40 of them in full blocks
  CHECK(world.sessions().rewind(session, 10, 32).status == ReceiptStatus::kRejected, "so many were not there");
  std::vector<TokenId> tokens = world.sessions().find(session)->tokens;
  tokens.erase(tokens.begin(), tokens.begin() + 14);  // [10, 14) is replaced
  CHECK(world.sessions().rewind(session, 10, 27).status == ReceiptStatus::kAccepted);
  tokens.insert(tokens.begin(), 77);
  world.turn(session, tokens);
  const std::vector<Miss> misses = world.report(session).misses;
  CHECK_EQ(misses.size(), 1u);
  CHECK(misses[0].cause == MissCause::kEdited && misses[0].turn == 2 && misses[0].by == 0);
  CHECK_EQ(misses[0].num_tokens, 26);  // [14, 40)
  world.sessions().rewind(session, 8, 0);
  world.turn(session, text(9, 5));
  CHECK_EQ(world.report(session).misses.size(), 1u);  // what does not come again is not missed
}

// A tenant that owns no more than its floor loses nothing to others, and takes what others have above theirs.
TEST(a_tenant_below_its_floor_loses_nothing_to_others) {
  World world(120, std::make_shared<LruPolicy>());
  CHECK(world.sessions().set_floor("a", 10).status == ReceiptStatus::kAccepted);
  const SessionId a = world.scheduler().open_session({"a"});
  const SessionId b = world.scheduler().open_session({"b"});
  world.turn(a, text(1, 40));
  for (TokenId i = 2; i < 30; ++i) {
    world.turn(b, text(i, 7));
    if (i % 7 == 0) world.squeeze(100);
    CHECK_EQ(world.report(a).num_resident_blocks, 10);
  }
  world.turn(a, text(50, 40));
  CHECK_EQ(world.report(a).num_resident_blocks, 20);
  CHECK_EQ(world.report(a).num_reused_tokens, 40);
  world.squeeze(100);
  world.squeeze(100);
  CHECK_EQ(world.report(a).num_resident_blocks, 10);  // above the floor it does lose
  world.sessions().set_floor("a", 0);
  world.squeeze(100);
  world.squeeze(100);
  CHECK_EQ(world.report(a).num_resident_blocks, 0);
}

// max_model_len is 400: with 150 blocks of 4 tokens, 49 are left for floors.
TEST(floors_leave_room_for_the_longest_sequence) {
  World world(150);
  CHECK(world.sessions().set_floor("a", 30).status == ReceiptStatus::kAccepted);
  const Receipt clipped = world.sessions().set_floor("b", 30);
  CHECK(clipped.status == ReceiptStatus::kClipped && clipped.num_blocks == 19, clipped.num_blocks);
  CHECK(world.sessions().set_floor("c", 1).status == ReceiptStatus::kRejected);
  CHECK(world.sessions().set_floor("a", 20).num_blocks == 20);
  CHECK(world.sessions().set_floor("c", 1).status == ReceiptStatus::kAccepted);
  const SessionId a = world.scheduler().open_session({"a"});
  const SessionId b = world.scheduler().open_session({"b"});
  world.turn(a, text(1, 80));
  world.turn(b, text(2, 76));
  world.turn(world.open(), text(3, 390), 10);  // it runs nevertheless, and takes nothing of theirs
  CHECK_EQ(world.report(a).num_resident_blocks, 20);
  CHECK_EQ(world.report(b).num_resident_blocks, 19);
}

TEST(every_miss_has_its_cause) {
  World world(40);
  const SessionId session = world.open();
  world.turn(session, text(1, 80));
  world.sessions().pause(session, "a", {{{0.5, 0.5}}});
  world.squeeze(30);  // 20 blank ones, and 10 that were held
  world.turn(session, text(2, 4));
  SessionReport report = world.report(session);
  CHECK_EQ(report.misses.size(), 1u);
  CHECK(report.misses[0].cause == MissCause::kEvicted);
  CHECK_EQ(report.misses[0].num_tokens, 40);
  CHECK_EQ(report.misses[0].turn, 2);
  world.at(1e6);
  CHECK(!world.report(session).is_held);
  world.squeeze(30);
  world.turn(session, text(3, 4));
  report = world.report(session);
  CHECK(report.misses.back().cause == MissCause::kExpired);
  const std::int64_t num_missed = report.misses[0].num_tokens + report.misses.back().num_tokens;
  CHECK_EQ(report.num_computed_tokens, 80 + 5 + 6 + num_missed);  // new: 4 and the last answer, which may end a block
}

TEST(one_that_lost_its_blocks_waits_until_there_is_room) {
  World world(30);
  const SessionId warm = world.open();
  world.turn(warm, text(1, 80));
  world.sessions().pause(warm, "a", {{{0.5, 0.5}}});
  const SessionId busy = world.open();
  world.begin(busy, text(2, 7), 20);
  world.simulation.step();
  const SessionId cold = world.open();
  const SequenceId turn = world.begin(cold, text(3, 30));
  for (int i = 0; i < 3; ++i) world.simulation.step();
  CHECK(world.scheduler().find(turn)->waits_for_room);
  CHECK_EQ(world.report(warm).num_resident_blocks, 20);
  world.at(1e5);  // nobody expects the other one any more
  world.simulation.step();
  CHECK(world.report(cold).view.state != SessionState::kQueued);
  world.simulation.run();
}

TEST(one_that_waits_for_room_goes_without_it_when_it_has_waited_ten_times_its_service) {
  World world(30);
  const SessionId held = world.open(1e9);
  world.turn(held, text(1, 80));
  const SessionId busy = world.open();
  world.begin(busy, text(2, 7), 300);
  const SessionId cold = world.open();
  const SequenceId turn = world.begin(cold, text(3, 30));
  double now = 0.0;
  for (; world.simulation.living.contains(turn); now += 0.5) {
    world.at(now);
    world.simulation.step();
    CHECK(now < 5.0, "waits for ever");
  }
  CHECK(now > 3.0, now);  // 30 tokens at 10 ms are its service
}

TEST(who_goes_without_room_costs_others_a_small_share_of_the_time) {
  World world(156);
  for (TokenId i = 0; i < 2; ++i) {
    world.turn(world.open(1e9), text(1 + i, 300));
  }
  world.begin(world.open(), text(3, 3), 300);
  std::vector<SessionId> waiting;
  for (TokenId i = 0; i < 3; ++i) {
    waiting.push_back(world.open());
    world.begin(waiting.back(), text(4 + i, 30), 150);
  }
  std::vector<double> began(3);
  for (double now = 0.0; began[2] == 0.0; now += 0.5) {
    CHECK(now < 60.0, "some wait for ever");
    world.at(now);
    world.simulation.step();
    for (std::size_t i = 0; i < 3; ++i)
      if (began[i] == 0.0 && world.report(waiting[i]).view.state == SessionState::kRunning) began[i] = now;
  }
  // 30 tokens at 10 ms, and as many of others, are a twentieth of the 12 s between two.
  CHECK(began[0] >= 3.0 && began[1] - began[0] >= 12.0 && began[2] - began[1] >= 12.0);
}

TEST(a_session_of_little_service_goes_before_one_that_ran_long) {
  World world(30);
  const SessionId old = world.open();
  world.begin(old, text(1, 8), 2);
  world.simulation.step();
  world.at(100.0);
  world.simulation.run();
  const SessionId young = world.open();
  world.turn(young, text(2, 8), 2);
  world.begin(world.open(), text(3, 60), 30);
  world.simulation.step();
  const SequenceId first = world.begin(old, text(4, 70));
  const SequenceId second = world.begin(young, text(5, 70));
  while (world.simulation.living.contains(second)) {
    CHECK(world.simulation.living.contains(first));
    world.simulation.step();
  }
  world.simulation.run();
}

TEST(weight_and_waiting_make_a_turn_urgent_and_service_does_not) {
  World world(40);
  world.at(100.0);
  const auto due = [&](SessionId id) { return world.sessions().deadline(id, 50) - 100.0; };
  CHECK(std::abs(due(world.open()) - 5.0) < 1e-9);  // ten times 50 tokens at 10 ms
  CHECK(std::abs(due(world.open(2.0)) - 2.5) < 1e-9);
  CHECK_EQ(due(0), 0.0);  // no session: at once
  const SessionId served = world.open();
  world.begin(served, text(1, 8), 2);
  world.simulation.step();
  world.at(103.0);
  world.simulation.run();
  CHECK(std::abs(due(served) - (3.0 + 10 * (3.0 + 0.5))) < 1e-9, due(served));
  const SessionId waiting = world.open();
  world.begin(world.open(), text(2, 150), 4);
  world.simulation.step();
  const SequenceId turn = world.begin(waiting, text(3, 20), 1);
  const double before = world.scheduler().find(turn)->deadline;
  world.at(105.0);
  world.simulation.run();
  CHECK(std::abs(before - (103.0 + 10 * 0.2)) < 1e-9, before);
  CHECK(std::abs(due(waiting) - (5.0 + 5.0 - 2.0)) < 1e-9, due(waiting));
}

TEST(sessions_change_nothing_under_lru) {
  const auto run = [](bool with_sessions) {
    World world(24, std::make_shared<LruPolicy>());
    std::vector<SessionId> sessions;
    std::vector<std::vector<TokenId>> tokens(3);
    for (int i = 0; i < 3; ++i) sessions.push_back(world.open());
    std::vector<std::int64_t> cached;
    for (TokenId i = 0; i < 30; ++i) {
      const auto who = static_cast<std::size_t>((i * i + i / 3) % 3);
      if (with_sessions) {
        world.sessions().pause(sessions[who], "a", {{{0.5, 100.0 / (i + 1)}}});
        world.turn(sessions[who], text(i, 2), 1);
      } else {
        const std::vector<TokenId> added = text(i, 2);
        tokens[who].insert(tokens[who].end(), added.begin(), added.end());
        SequenceSpec spec{.id = static_cast<SequenceId>(i) + 1, .prompt = tokens[who]};
        spec.stop.max_total_tokens = static_cast<std::int32_t>(tokens[who].size()) + 1;
        world.simulation.add(spec);
        world.simulation.run();
        tokens[who] = world.simulation.finished.at(spec.id).tokens;
      }
      cached.push_back(world.scheduler().num_cached_tokens());
    }
    return cached;
  };
  CHECK(run(true) == run(false));
}

}  // namespace
}  // namespace paged

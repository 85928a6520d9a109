// SPDX-License-Identifier: Apache-2.0
// The invariants of sessions that are seen in the core only; the others are in tests/test_session_invariants.py.
#include <cmath>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "check.h"
#include "core/eviction_order.h"
#include "core/hazard_policy.h"
#include "core/indexed_heap.h"
#include "core/policies.h"
#include "core_simulation.h"

namespace paged {
namespace {

// What a session owns is, block by block from its first token on, what the cache holds of its tokens.
void check_path(const Scheduler& scheduler, const Session& session, std::int32_t block_size) {
  const OwnerTable& owners = scheduler.blocks().owners();
  const PrefixCache& cache = scheduler.blocks().cache();
  ContentId parent = 0;
  for (std::int32_t i = 0; i < owners.path_size(session.slot); ++i) {
    const BlockId block = owners.block_at(session.slot, i);
    CHECK(cache.contains(block), "a path has a block without content");
    if (i > 0) CHECK_EQ(cache.parent_id(block), parent);
    parent = cache.content_id(block);
    const std::span<const TokenId> held = cache.tokens(block);
    const auto first = session.tokens.begin() + static_cast<std::ptrdiff_t>(i) * block_size;
    CHECK(std::equal(held.begin(), held.end(), first), "block ", i, " holds other tokens than the session's");
  }
}

TEST(invariant_7_every_resident_block_is_reachable) {
  for (unsigned seed = 0; seed < 10; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](int limit) { return std::uniform_int_distribution<int>(0, limit - 1)(random); };
    test::Simulation simulation({.num_blocks = 30,
                                 .block_size = 3,
                                 .max_num_sequences = 4,
                                 .max_num_batched_tokens = 16,
                                 .max_model_len = 60,
                                 .max_wait_steps = 20});
    Scheduler& scheduler = simulation.scheduler;
    SessionTable& table = scheduler.sessions();
    table.set_floor("t", 5);
    std::vector<SessionId> open;
    SequenceId next_id = 1;
    for (int i = 0; i < 300; ++i) {
      scheduler.set_now(0.1 * i);
      if (open.size() < 6 && below(5) == 0) open.push_back(scheduler.open_session({below(2) ? "t" : ""}));
      if (open.empty()) continue;
      const SessionId id = open[static_cast<std::size_t>(below(static_cast<int>(open.size())))];
      const auto length = static_cast<std::int32_t>(table.find(id)->tokens.size());
      const int choice = below(6);
      if (choice == 0) table.rewind(id, below(length + 1));
      if (choice == 1) table.pin(id, 1.0, below(8));
      if (choice == 2 && table.may_begin_turn(id) && open.size() < 6) open.push_back(scheduler.fork_session(id));
      if (choice > 2 && table.may_begin_turn(id) && length < 45) {
        SequenceSpec spec{.id = next_id++, .session = id};
        for (int n = 1 + below(8); n > 0; --n) spec.prompt.push_back(below(2));
        spec.stop.max_total_tokens = length + static_cast<std::int32_t>(spec.prompt.size()) + 2;
        simulation.add_turn(spec);
      }
      simulation.step();
      for (const SessionId each : open)
        if (table.may_begin_turn(each)) check_path(scheduler, *table.find(each), 3);
    }
    simulation.run();
  }
}

struct CountingKey {
  double value = 0.0;
  BlockId block = kNoBlock;
  static inline std::int64_t num_comparisons = 0;
  bool operator<(const CountingKey& other) const {
    ++num_comparisons;
    return value != other.value ? value < other.value : block < other.block;
  }
};

TEST(invariant_8_ordering_takes_a_logarithm_of_comparisons) {
  for (const std::int32_t num_blocks : {100, 10'000, 300'000}) {
    HeapIndex<CountingKey> index(num_blocks);
    IndexedHeap<CountingKey> heap(index);
    std::mt19937 random(1);
    std::uniform_real_distribution<double> value;
    for (BlockId block = 0; block < num_blocks; ++block) heap.push(block, {value(random), block});
    CountingKey::num_comparisons = 0;
    constexpr int kRounds = 1000;
    for (int i = 0; i < kRounds; ++i) {  // a victim, and one that is worth something else now
      const BlockId victim = heap.front();
      heap.remove(victim);
      heap.push(victim, {value(random), victim});
      const auto other = static_cast<BlockId>(random() % static_cast<unsigned>(num_blocks));
      heap.remove(other);
      heap.push(other, {value(random), other});
    }
    const double per_operation = static_cast<double>(CountingKey::num_comparisons) / (4.0 * kRounds);
    CHECK(per_operation <= 2 * std::log2(num_blocks) + 2, num_blocks, " blocks: ", per_operation);
  }
}

TEST(invariant_8_a_victim_is_found_without_a_scan) {
  constexpr std::int32_t kNumBlocks = 50'000;
  EvictionOrder order(kNumBlocks);
  for (int lane = 1; lane < 4; ++lane) order.add_lane();
  for (BlockId block = 0; block < kNumBlocks; ++block) {
    order.take(block);
    order.enter(block, kNoBlock);
    order.set_lane(block, block % 4);
    order.free(block, {block % 3 == 0, 1.0 + block}, 0.0);
  }
  int num_asked = 0;
  const auto worth_at_age = [&](double) { return ++num_asked, 0.5; };
  const auto may_take = [&](std::int32_t lane) { return ++num_asked, lane != 2; };
  for (int i = 0; i < 1000; ++i) {
    num_asked = 0;
    const BlockId victim = order.victim(1.0, worth_at_age, may_take);
    CHECK(victim != kNoBlock && victim % 4 != 2);
    CHECK(num_asked <= 3 * 4, num_asked);  // some for each lane, whatever there is in it
    order.leave(victim);
    order.take(victim);
    order.enter(victim, kNoBlock);
    order.free(victim, {true, 0.0}, 1.0);
  }
}

TEST(invariant_6_late_events_of_a_closed_session_do_nothing_to_its_successor) {
  test::Simulation simulation(
      {.num_blocks = 20, .block_size = 4, .max_num_sequences = 2, .max_num_batched_tokens = 16, .max_model_len = 60});
  SessionTable& table = simulation.scheduler.sessions();
  const SessionId old = simulation.scheduler.open_session({});
  const OwnerSlot slot = table.find(old)->slot;
  table.close(old);
  const SessionId next = simulation.scheduler.open_session({});
  CHECK_EQ(table.find(next)->slot, slot);  // the slot is used again, the id never
  SequenceSpec spec{.id = 1, .prompt = {1, 2, 3, 4, 5}, .session = next};
  spec.stop.max_total_tokens = 6;
  simulation.add_turn(spec);
  simulation.run();
  CHECK(table.pause(old, "a", {}).status == ReceiptStatus::kRejected);
  CHECK(table.rewind(old, 0).status == ReceiptStatus::kRejected);
  CHECK(table.close(old).status == ReceiptStatus::kRejected);
  CHECK(table.report(next).view.state == SessionState::kIdle);
  CHECK_EQ(table.report(next).num_resident_blocks, 1);
}

// A policy that leaves everything to its fallback, or whose proposals are about what a session was before, decides
// nothing; one about the session as it is does, until its time is over and patience too.
TEST(proposals_count_for_what_they_are_about) {
  std::vector<PolicyQuestion> questions;
  ProposedPolicy policy(std::make_shared<PriorityPolicy>(), 1.0,
                        [&](PolicyQuestion question) { questions.push_back(std::move(question)); });
  const Pressure pressure{100, 4};
  SessionView view;
  view.id = 7;
  view.weight = 3.0;
  CHECK_EQ(policy.score(view, pressure).value, 3.0);
  CHECK_EQ(policy.score(view, pressure).value, 3.0);
  CHECK_EQ(questions.size(), 1u);  // asked once
  Proposal proposal{7, 0, 0.0, Score{false, 9.0, true, 5.0}};
  proposal.admits = false;
  CHECK(policy.accept(proposal, view));
  CHECK_EQ(policy.score(view, pressure).value, 9.0);
  CHECK_EQ(policy.score(view, pressure).valid_for, 5.0);
  CHECK(!policy.admit(view, pressure));
  CHECK(policy.place(view, pressure) == Tier::kDevice, "which it left out");
  view.since = 5.5;
  CHECK_EQ(policy.score(view, pressure).value, 9.0);  // while it is asked again
  CHECK_EQ(questions.size(), 2u);
  view.since = 6.5;
  CHECK_EQ(policy.score(view, pressure).value, 3.0);
  view.revision = 1;
  view.since = 0.0;
  CHECK_EQ(policy.score(view, pressure).value, 3.0);
  CHECK(policy.admit(view, pressure));
  CHECK(!policy.accept(proposal, view), "it is about what has been");
  policy.on_event(SessionEvent::kClosed, view);
  proposal.revision = 1;
  CHECK(!policy.accept(proposal, view), "the session is closed");
}

}  // namespace
}  // namespace paged

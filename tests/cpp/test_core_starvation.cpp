// SPDX-License-Identifier: Apache-2.0
// The starvation bound: urgent requests that never stop coming delay the others by a bounded number of steps.
#include <algorithm>
#include <vector>

#include "check.h"
#include "core_simulation.h"

namespace paged {
namespace {

using test::Simulation;

constexpr std::int32_t kMaxModelLen = 24;
constexpr SequenceId kHumble = 1;

SchedulerConfig config_with(std::int32_t max_wait_steps, std::int32_t max_steps_in_flight = 1) {
  return {.num_blocks = 12,
          .block_size = 4,
          .max_num_sequences = 3,
          .max_num_batched_tokens = 8,
          .max_model_len = kMaxModelLen,
          .max_wait_steps = max_wait_steps,
          .max_steps_in_flight = max_steps_in_flight};
}

// Keeps urgent requests queued, one humble request among them, for so many steps. Returns the step in which the
// humble one finished, or -1.
int finish_under_hostile_stream(Simulation& simulation, int num_steps) {
  SequenceId next_id = 100;
  for (int step = 0; step < num_steps; ++step) {
    if (step == 5) simulation.add({.id = kHumble, .prompt = std::vector<TokenId>(9, 1), .priority = 10});
    while (simulation.scheduler.num_waiting() < 4) {
      const std::vector<TokenId> prompt{static_cast<TokenId>(next_id % 5), static_cast<TokenId>(next_id % 7), 1};
      simulation.add({.id = next_id++, .prompt = prompt, .priority = -10});
    }
    simulation.step();
    if (simulation.finished.contains(kHumble)) return step;
  }
  return -1;
}

TEST(starves_without_the_bound) {
  Simulation simulation(config_with(1000000));
  CHECK_EQ(finish_under_hostile_stream(simulation, 1500), -1);
}

TEST(a_promoted_sequence_runs_to_its_end_within_the_bound) {
  for (const std::int32_t max_wait_steps : {0, 7, 60}) {
    for (const std::int32_t max_steps_in_flight : {1, 2}) {
      Simulation simulation(config_with(max_wait_steps, max_steps_in_flight));
      const int step = finish_under_hostile_stream(simulation, 1500);
      // Ahead of it at its promotion: those running, and (with no wait, all promoted alike) those queued before.
      const int num_ahead = 3 + 4;
      CHECK(step >= 0 && step <= 5 + max_wait_steps + (num_ahead + 1) * kMaxModelLen, "step ", step);
      CHECK(simulation.scheduler.num_preemptions() > 0, "the stream was not hostile enough");
    }
  }
}

TEST(promoted_sequences_are_served_in_order_of_arrival) {
  Simulation simulation(config_with(20));
  simulation.add({.id = 1000, .prompt = {0}, .priority = -10});
  simulation.step();
  for (SequenceId id = 1; id <= 4; ++id)  // the later, the more urgent
    simulation.add({.id = id, .prompt = {1, 2}, .priority = 10 - static_cast<std::int32_t>(id)});
  SequenceId next_id = 2000;
  std::vector<SequenceId> order;
  for (int step = 0; step < 1000 && order.size() < 4; ++step) {
    while (simulation.scheduler.num_waiting() < 8)
      simulation.add({.id = next_id++, .prompt = {3, 4, 5}, .priority = -10});
    simulation.step();
    for (SequenceId id = 1; id <= 4; ++id) {
      const Sequence* sequence = simulation.scheduler.find(id);
      const bool admitted = sequence == nullptr || sequence->admitted_before;
      if (admitted && std::find(order.begin(), order.end(), id) == order.end()) order.push_back(id);
    }
  }
  CHECK(order == (std::vector<SequenceId>{1, 2, 3, 4}));
}

TEST(waits_of_a_preempted_sequence_add_up) {
  WaitingQueue queue;
  Sequence sequence;
  sequence.wait_left = 10;
  queue.push(sequence, 0);
  queue.remove(sequence, 6);
  queue.push(sequence, 50);
  queue.promote_due(54);
  CHECK(!sequence.promoted);
  queue.promote_due(55);
  CHECK(sequence.promoted);
  queue.check_integrity();
}

// Sessions that always have a turn, one running at a time, each step a tenth of a second. The weights' mean waits, in
// seconds, and the longest wait of all.
std::vector<double> waits_by_weight(const std::vector<double>& weights, double& longest) {
  Simulation simulation({.num_blocks = 400,
                         .block_size = 4,
                         .max_num_sequences = 1,
                         .max_num_batched_tokens = 64,
                         .max_model_len = 2000,
                         .max_wait_steps = 1 << 30});
  simulation.scheduler.set_step_cost({2e-3, 0.0});
  std::vector<SessionId> sessions;
  std::vector<double> waits(weights.size()), begun(weights.size());
  std::vector<int> num_turns(weights.size());
  std::vector<SequenceId> turns(weights.size());
  for (const double weight : weights) sessions.push_back(simulation.scheduler.open_session({"", weight}));
  SequenceId next = 1;
  double now = 0.0;
  for (int step = 0; step < 4000; ++step, now += 0.1) {
    simulation.scheduler.set_now(now);
    for (std::size_t i = 0; i < sessions.size(); ++i) {
      if (!simulation.scheduler.sessions().may_begin_turn(sessions[i])) continue;
      simulation.scheduler.sessions().rewind(sessions[i], 0);
      SequenceSpec spec{
          .id = next++, .prompt = std::vector<TokenId>(20, static_cast<TokenId>(i)), .session = sessions[i]};
      spec.stop.max_total_tokens = 22;
      turns[i] = spec.id;
      begun[i] = now;
      simulation.add_turn(spec);
    }
    simulation.step();
    for (std::size_t i = 0; i < sessions.size(); ++i) {
      longest = std::max(longest, now - begun[i]);
      if (!simulation.finished.contains(turns[i])) continue;
      waits[i] += now - begun[i];
      ++num_turns[i];
    }
  }
  for (std::size_t i = 0; i < sessions.size(); ++i) waits[i] = num_turns[i] == 0 ? 1e9 : waits[i] / num_turns[i];
  return waits;
}

TEST(the_lighter_a_session_the_longer_it_waits_but_it_does_not_wait_for_ever) {
  double longest = 0.0, longest_of_equals = 0.0;
  const std::vector<double> waits = waits_by_weight({0.1, 1.0, 1.0, 10.0}, longest);
  const std::vector<double> equals = waits_by_weight({1.0, 1.0, 1.0, 1.0}, longest_of_equals);
  CHECK(waits[0] > 1.5 * waits[1] && waits[1] > 1.5 * waits[3], waits[0], " ", waits[1], " ", waits[3]);
  CHECK(waits[0] < 1e9 && longest < 20.0, "waits ", longest);
  CHECK(equals[0] < 2 * equals[3] && equals[3] < 2 * equals[0], equals[0], " ", equals[3]);
}

}  // namespace
}  // namespace paged

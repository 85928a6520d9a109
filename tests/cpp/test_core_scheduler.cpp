// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <string>
#include <vector>

#include "base/check.h"
#include "check.h"
#include "core/scheduler.h"
#include "core_simulation.h"

namespace paged {
namespace {

using test::Simulation;

SchedulerConfig small_config(std::int32_t max_steps_in_flight = 1) {
  return {.num_blocks = 32,
          .block_size = 4,
          .max_num_sequences = 4,
          .max_num_batched_tokens = 16,
          .max_model_len = 64,
          .max_steps_in_flight = max_steps_in_flight};
}

std::vector<TokenId> tokens(std::int32_t count, TokenId first = 0) {
  std::vector<TokenId> result;
  for (std::int32_t i = 0; i < count; ++i) result.push_back(first + i);
  return result;
}

SequenceSpec spec(SequenceId id, std::int32_t num_prompt_tokens, std::int32_t max_total_tokens) {
  return {.id = id, .prompt = tokens(num_prompt_tokens), .stop = {.max_total_tokens = max_total_tokens}};
}

TEST(refuses_what_can_never_run) {
  SchedulerConfig config = small_config();
  Scheduler scheduler(config);
  CHECK_THROWS(scheduler.add({.id = 1}), std::invalid_argument, "the prompt is empty");
  CHECK_THROWS(scheduler.add(spec(1, 64, 100)), std::invalid_argument, "64 tokens; max_model_len is 64");
  CHECK_THROWS(scheduler.add(spec(1, 10, 10)), std::invalid_argument, "max_total_tokens = 10");
  config.max_model_len = 1000;
  Scheduler tight(config);
  CHECK_THROWS(tight.add(spec(1, 128, 999)), std::invalid_argument, "32 blocks of 4 tokens");
  scheduler.add(spec(1, 63, 100));
  CHECK_THROWS(scheduler.add(spec(1, 5, 100)), std::invalid_argument, "sequence id 1 is in use");
  tight.add(spec(1, 127, 999));
  CHECK_EQ(scheduler.num_waiting(), 1);
  scheduler.check_integrity();
}

TEST(refuses_configs_that_cannot_run) {
  SchedulerConfig config = small_config();
  config.max_num_batched_tokens = 0;
  CHECK_THROWS(Scheduler{config}, std::invalid_argument, "max_num_batched_tokens must be at least 1, got 0");
  config = small_config();
  config.max_model_len = 1;
  CHECK_THROWS(Scheduler{config}, std::invalid_argument, "max_model_len must be at least 2, got 1");
  config = small_config(0);
  CHECK_THROWS(Scheduler{config}, std::invalid_argument, "max_steps_in_flight must be at least 1, got 0");
  config = small_config();
  config.num_blocks = -3;
  CHECK_THROWS(Scheduler{config}, std::invalid_argument, "num_blocks must be at least 1, got -3");
}

TEST(what_is_allowed_beyond_the_pool_costs_no_memory) {
  SchedulerConfig config = small_config();
  config.max_num_batched_tokens = config.max_num_sequences = std::numeric_limits<std::int32_t>::max();
  Simulation simulation(config);
  for (SequenceId id = 1; id <= 8; ++id) simulation.add(spec(id, 9 + static_cast<std::int32_t>(id), 30));
  simulation.run();
  CHECK_EQ(simulation.finished.size(), 8u);
}

TEST(steps_out_of_turn_are_bugs) {
  Scheduler scheduler(small_config());
  scheduler.add(spec(1, 3, 10));
  const StepPlan& plan = scheduler.schedule();
  CHECK_THROWS(scheduler.schedule(), InternalError, "schedule() with 1 steps in flight");
  std::vector<TokenEvent> events;
  CHECK_THROWS(scheduler.commit(plan, {}, events), InternalError, "samples 1 tokens, got 0");
  CHECK_THROWS(scheduler.commit({}, {}, events), InternalError, "not the oldest in flight");

  Scheduler ahead(small_config(2));
  ahead.add(spec(1, 3, 10));
  ahead.schedule();
  CHECK_THROWS(ahead.commit(ahead.schedule(), std::vector<TokenId>(1), events), InternalError, "not the oldest");
}

TEST(stops_by_id_after_min_tokens_and_by_length) {
  Simulation simulation(small_config());
  SequenceSpec by_id{.id = 1, .prompt = {1}, .stop = {.stop_token_ids = {0, 1, 2}}};
  SequenceSpec later{.id = 2, .prompt = {1}, .stop = {.min_tokens = 5, .stop_token_ids = {0, 1, 2}}};
  for (const SequenceSpec& each : {by_id, later, spec(3, 5, 9), spec(4, 5, 1000)}) simulation.add(each);
  simulation.run();
  CHECK_EQ(simulation.finished.at(1).tokens.size(), 2u);
  CHECK(simulation.finished.at(1).reason == FinishReason::kStop);
  CHECK_EQ(simulation.finished.at(2).tokens.size(), 6u);
  CHECK_EQ(simulation.finished.at(3).tokens.size(), 9u);
  CHECK(simulation.finished.at(3).reason == FinishReason::kLength);
  CHECK_EQ(simulation.finished.at(4).tokens.size(), 64u, "max_model_len");
  CHECK_EQ(simulation.scheduler.num_free_blocks(), 32);
}

TEST(ends_at_the_pools_capacity) {
  SchedulerConfig config = small_config();
  config.num_blocks = 3;
  Simulation simulation(config);
  simulation.add(spec(1, 5, 1000));
  simulation.add(spec(2, 7, 1000));
  simulation.run();
  CHECK_EQ(simulation.finished.at(1).tokens.size(), 12u);
  CHECK_EQ(simulation.finished.at(2).tokens.size(), 12u);
}

TEST(a_full_prompt_hit_computes_the_last_token) {
  Simulation simulation(small_config());
  simulation.add(spec(1, 8, 10));
  simulation.run();
  simulation.add(spec(2, 8, 10));
  simulation.step();
  CHECK_EQ(simulation.scheduler.find(2)->num_cached_tokens, 4);
  CHECK_EQ(simulation.scheduler.num_cached_tokens(), 4);
  simulation.run();
  simulation.add(spec(3, 9, 20));
  simulation.step();
  CHECK_EQ(simulation.scheduler.find(3)->num_cached_tokens, 8);
}

TEST(salts_and_the_switch_keep_prompts_apart) {
  Simulation simulation(small_config());
  SequenceSpec other = spec(2, 8, 10);
  other.cache_salt = "tenant";
  simulation.add(spec(1, 8, 10));
  simulation.run();
  simulation.add(other);
  simulation.run();
  CHECK_EQ(simulation.scheduler.num_cached_tokens(), 0);
  SchedulerConfig config = small_config();
  config.enable_prefix_caching = false;
  Simulation uncached(config);
  for (const SequenceId id : {1, 2, 3}) {
    uncached.add(spec(id, 8, 10));
    uncached.run();
  }
  CHECK_EQ(uncached.scheduler.num_cached_tokens(), 0);
}

TEST(equal_sequences_side_by_side_end_up_in_the_same_blocks) {
  for (const std::int32_t max_steps_in_flight : {1, 2}) {
    Simulation simulation(small_config(max_steps_in_flight));
    simulation.add(spec(2, 8, 20));
    simulation.add(spec(4, 8, 20));
    for (int i = 0; i < 9; ++i) simulation.step();
    const Sequence& first = *simulation.scheduler.find(2);
    const Sequence& second = *simulation.scheduler.find(4);
    CHECK_EQ(first.num_sealed_blocks, 4);
    CHECK(std::equal(first.block_table.begin(), first.block_table.begin() + 4, second.block_table.begin()));
    simulation.run();
  }
}

TEST(every_running_sequence_advances_beside_a_long_prompt) {
  Simulation simulation(small_config());
  simulation.add(spec(1, 2, 60));
  simulation.add(spec(2, 3, 60));
  simulation.step();
  SequenceSpec urgent = spec(3, 50, 60);
  urgent.priority = -1;
  simulation.add(urgent);
  simulation.step();  // two decodes, 14 tokens of the prompt
  const StepPlan& plan = simulation.scheduler.schedule();
  CHECK_EQ(plan.num_tokens, 16);
  CHECK_EQ(plan.sequences.size(), 3u);
  CHECK_EQ(plan.sequences[0].id, 3u);
  CHECK_EQ(plan.sequences[0].num_scheduled_tokens, 14);
}

TEST(urgent_first_and_the_least_urgent_is_the_victim) {
  SchedulerConfig config = small_config();
  config.num_blocks = 6;
  config.max_num_sequences = 2;
  Simulation simulation(config);
  simulation.add(spec(1, 5, 24));
  SequenceSpec urgent = spec(2, 5, 24);
  urgent.priority = -5;
  simulation.add(urgent);
  simulation.add(spec(3, 2, 24));
  simulation.step();
  CHECK(simulation.scheduler.find(2)->status == SequenceStatus::kRunning);
  CHECK(simulation.scheduler.find(3)->status == SequenceStatus::kWaiting);
  while (simulation.scheduler.num_preemptions() == 0) simulation.step();
  CHECK(simulation.scheduler.find(2)->status == SequenceStatus::kRunning);
  CHECK(simulation.scheduler.find(1)->status == SequenceStatus::kWaiting);
  simulation.run();
  CHECK_EQ(simulation.finished.size(), 3u);
}

TEST(a_fork_copies_the_shared_partial_block_once) {
  Simulation simulation(small_config());
  simulation.add(spec(1, 6, 20));
  simulation.step();
  simulation.fork(1, 2);
  const std::int32_t num_free = simulation.scheduler.num_free_blocks();
  CHECK(simulation.scheduler.find(1)->block_table == simulation.scheduler.find(2)->block_table);
  simulation.step();
  CHECK_EQ(simulation.device.num_blocks_copied, 1);
  CHECK_EQ(simulation.scheduler.num_free_blocks(), num_free - 1);
  CHECK(!simulation.scheduler.fork(99, 3));
  simulation.run();
  CHECK_EQ(simulation.finished.size(), 2u);
}

// 1 copies the last block it shares with 4; 2 finds no block for its own copy, so 4 is preempted. Were the block freed
// by that, 2 would copy into it what 1 is about to copy from it.
TEST(the_source_of_a_copy_is_not_handed_out_in_the_same_step) {
  SchedulerConfig config = small_config();
  config.num_blocks = 5;
  Simulation simulation(config);
  simulation.add({.id = 1, .prompt = tokens(5), .stop = {.max_total_tokens = 8}});
  simulation.add({.id = 2, .prompt = tokens(5, 50), .stop = {.max_total_tokens = 8}});
  simulation.step();
  simulation.fork(2, 3);
  simulation.fork(1, 4);
  CHECK_EQ(simulation.scheduler.num_free_blocks(), 1);
  simulation.step();
  CHECK_EQ(simulation.device.num_blocks_copied, 1);
  CHECK_EQ(simulation.scheduler.num_preemptions(), 2);
  simulation.run();
  CHECK_EQ(simulation.finished.size(), 4u);
}

// The parent's step in flight fills the block that it shares with the child.
TEST(a_fork_under_a_step_in_flight_copies_once) {
  Simulation simulation(small_config(3));
  simulation.add(spec(1, 6, 20));
  CHECK(simulation.launch());
  simulation.commit();
  CHECK(simulation.launch() && simulation.launch());
  simulation.fork(1, 2);
  simulation.commit();
  simulation.commit();  // 8 tokens computed: sealed
  CHECK_EQ(simulation.scheduler.find(1)->num_sealed_blocks, 2);
  CHECK_EQ(simulation.scheduler.find(2)->num_sealed_blocks, 1);
  simulation.fork(1, 3);
  for (int i = 0; i < 3; ++i) simulation.step();
  CHECK_EQ(simulation.device.num_blocks_copied, 1);
  simulation.run();
  CHECK_EQ(simulation.finished.size(), 3u);

  Simulation shared(small_config(2));
  shared.add(spec(1, 5, 20));
  shared.step();
  shared.fork(1, 2);
  shared.run();
  CHECK_EQ(shared.device.num_blocks_copied, 1, "what a copy in flight reads need not be copied again");
}

TEST(what_has_ended_keeps_its_blocks_until_its_steps_in_flight_are_done) {
  Simulation simulation(small_config(2));
  simulation.add({.id = 1, .prompt = tokens(5), .stop = {.stop_token_ids = {0, 1, 2}}});
  simulation.add(spec(2, 5, 20));
  simulation.step();  // 1 has stopped, which the second step did not know
  CHECK_EQ(simulation.finished.at(1).tokens.size(), 6u);
  CHECK_EQ(simulation.scheduler.num_running(), 1);
  CHECK_EQ(simulation.scheduler.num_free_blocks(), 32 - 4);
  CHECK(simulation.scheduler.find(1) != nullptr);
  CHECK_THROWS(simulation.scheduler.add(spec(1, 5, 20)), std::invalid_argument, "in use");
  simulation.commit();
  CHECK(simulation.scheduler.find(1) == nullptr);
  CHECK_EQ(simulation.scheduler.num_free_blocks(), 32 - 2);
  simulation.run();
  CHECK_EQ(simulation.scheduler.num_free_blocks(), 32);
}

TEST(no_step_is_launched_for_a_token_that_cannot_be) {
  Simulation simulation(small_config(3));
  simulation.add(spec(1, 5, 7));
  CHECK(simulation.launch() && simulation.launch());
  CHECK(!simulation.launch(), "7 tokens are all it may have");
  simulation.run();
  CHECK_EQ(simulation.finished.at(1).tokens.size(), 7u);
}

TEST(nobody_is_preempted_under_a_step_in_flight) {
  SchedulerConfig config = small_config(2);
  config.num_blocks = 5;
  Simulation simulation(config);
  simulation.add({.id = 1, .prompt = tokens(7), .stop = {.max_total_tokens = 16}});
  simulation.add({.id = 2, .prompt = tokens(7, 50), .stop = {.max_total_tokens = 16}});
  CHECK(simulation.launch() && simulation.launch());
  simulation.commit();
  CHECK_EQ(simulation.scheduler.num_free_blocks(), 1);
  CHECK(simulation.launch());  // 1 takes the last block, 2 finds none
  simulation.commit();
  CHECK(!simulation.launch(), "there is a step in flight");
  CHECK_EQ(simulation.scheduler.num_preemptions(), 0);
  simulation.commit();
  CHECK(simulation.launch());
  CHECK_EQ(simulation.scheduler.num_preemptions(), 1);
  simulation.run();
  CHECK_EQ(simulation.finished.size(), 2u);
}

TEST(a_fork_without_a_free_row_waits) {
  SchedulerConfig config = small_config();
  config.max_num_sequences = 1;
  Simulation simulation(config);
  simulation.add(spec(1, 9, 20));
  simulation.step();
  simulation.fork(1, 2);
  CHECK_EQ(simulation.scheduler.num_waiting(), 1);
  simulation.run();
  CHECK_EQ(simulation.finished.size(), 2u);
}

}  // namespace
}  // namespace paged

// SPDX-License-Identifier: Apache-2.0
// The batch of a step, number by number, and what stays where it is from step to step.
#include <vector>

#include "check.h"
#include "core/scheduler.h"

namespace paged {
namespace {

std::vector<std::int32_t> head(const std::vector<std::int32_t>& values, std::int32_t count) {
  return {values.begin(), values.begin() + count};
}

std::vector<TokenEvent> commit_all(Scheduler& scheduler, const StepPlan& plan, TokenId token) {
  const std::vector<TokenId> sampled(static_cast<std::size_t>(plan.num_logits_rows), token);
  std::vector<TokenEvent> events;
  scheduler.commit(plan, sampled, events);
  return events;
}

TEST(mixes_prefill_chunks_and_decodes) {
  Scheduler scheduler(
      {.num_blocks = 16, .block_size = 4, .max_num_sequences = 4, .max_num_batched_tokens = 6, .max_model_len = 32});
  scheduler.add({.id = 1, .prompt = {10, 11, 12, 13}});
  scheduler.add({.id = 2, .prompt = {20, 21, 22, 23, 24, 25, 26}});

  const StepPlan& first = scheduler.schedule();
  const StepBatch& batch = scheduler.build_batch(first);
  CHECK_EQ(batch.num_tokens, 6);
  CHECK_EQ(batch.num_sequences, 2);
  CHECK(head(batch.token_ids, 6) == (std::vector<std::int32_t>{10, 11, 12, 13, 20, 21}));
  CHECK(head(batch.positions, 6) == (std::vector<std::int32_t>{0, 1, 2, 3, 0, 1}));
  CHECK(head(batch.slot_mapping, 6) == (std::vector<std::int32_t>{0, 1, 2, 3, 4, 5}));
  CHECK(head(batch.query_start, 3) == (std::vector<std::int32_t>{0, 4, 6}));
  CHECK(head(batch.seq_lens, 2) == (std::vector<std::int32_t>{4, 2}));
  CHECK(head(batch.block_table_rows, 2) == (std::vector<std::int32_t>{0, 1}));
  CHECK_EQ(batch.block_table_stride, 8);
  CHECK(head(batch.block_tables, 1) == (std::vector<std::int32_t>{0}));
  CHECK_EQ(batch.block_tables[8], 1);
  CHECK_EQ(batch.block_tables[9], 2);
  CHECK_EQ(batch.num_logits_rows, 1);
  CHECK_EQ(batch.logits_rows[0], 3);
  CHECK_EQ(first.sequences[0].sampled_position(), 4);
  CHECK_EQ(commit_all(scheduler, first, 14).size(), 1u);

  const StepPlan& second = scheduler.schedule();
  scheduler.build_batch(second);
  CHECK(head(batch.token_ids, 6) == (std::vector<std::int32_t>{14, 22, 23, 24, 25, 26}));
  CHECK(head(batch.slot_mapping, 6) == (std::vector<std::int32_t>{12, 6, 7, 8, 9, 10}));
  CHECK(head(batch.seq_lens, 2) == (std::vector<std::int32_t>{5, 7}));
  CHECK(head(batch.logits_rows, 2) == (std::vector<std::int32_t>{0, 5}));
  CHECK_EQ(commit_all(scheduler, second, 15).size(), 2u);
}

TEST(a_step_ahead_feeds_the_pending_token_by_its_row) {
  Scheduler scheduler({.num_blocks = 16,
                       .block_size = 4,
                       .max_num_sequences = 4,
                       .max_num_batched_tokens = 8,
                       .max_model_len = 32,
                       .max_steps_in_flight = 2});
  scheduler.add({.id = 1, .prompt = {10, 11, 12}});
  scheduler.add({.id = 2, .prompt = {20, 21, 22, 23}});
  const StepPlan& first = scheduler.schedule();
  const StepBatch& batch = scheduler.build_batch(first);
  CHECK(head(batch.changed_table_entries, 2) == (std::vector<std::int32_t>{0, 8}));
  CHECK(head(batch.is_decode, 2) == (std::vector<std::int32_t>{0, 0}));

  const StepPlan& second = scheduler.schedule();
  scheduler.build_batch(second);
  CHECK(&first != &second);
  CHECK(head(batch.token_ids, 2) == (std::vector<std::int32_t>{-1, -2}));
  CHECK(head(batch.positions, 2) == (std::vector<std::int32_t>{3, 4}));
  CHECK(head(batch.slot_mapping, 2) == (std::vector<std::int32_t>{3, 8}));
  CHECK(batch.changed_table_entries == (std::vector<std::int32_t>{9}));
  CHECK(head(batch.is_decode, 2) == (std::vector<std::int32_t>{1, 1}));
  CHECK(head(batch.sampled_table_rows, 2) == (std::vector<std::int32_t>{0, 1}));

  CHECK_EQ(commit_all(scheduler, first, 5).size(), 2u);
  scheduler.remove(2);
  const StepPlan& third = scheduler.schedule();
  scheduler.build_batch(third);
  CHECK_EQ(batch.num_tokens, 1);
  CHECK_EQ(batch.token_ids[0], -1);
  CHECK_EQ(commit_all(scheduler, second, 6).size(), 1u, "nothing of the sequence removed");
  CHECK_EQ(commit_all(scheduler, third, 7).size(), 1u);
  CHECK((scheduler.find(1)->tokens == std::vector<TokenId>{10, 11, 12, 5, 6, 7}));
}

// A preempted sequence computes its generated tokens again apart from its prompt, through the kernel they came from.
TEST(no_chunk_mixes_prompt_and_generated_tokens) {
  Scheduler scheduler({.num_blocks = 4,
                       .block_size = 4,
                       .max_num_sequences = 2,
                       .max_num_batched_tokens = 16,
                       .max_model_len = 16,
                       .enable_prefix_caching = false});
  scheduler.add({.id = 1, .prompt = {1, 1, 1}, .stop = {.max_total_tokens = 11}});
  scheduler.add({.id = 2, .prompt = {2, 2, 2}, .stop = {.max_total_tokens = 10}});
  while (scheduler.find(1) != nullptr) commit_all(scheduler, scheduler.schedule(), 9);
  CHECK_EQ(scheduler.num_preemptions(), 1);
  CHECK_EQ(scheduler.find(2)->num_tokens(), 9);

  const StepPlan& prompt = scheduler.schedule();
  const StepBatch& batch = scheduler.build_batch(prompt);
  CHECK_EQ(batch.num_tokens, 3);
  CHECK_EQ(batch.num_decodes, 0);
  CHECK_EQ(commit_all(scheduler, prompt, 9).size(), 0u);
  const StepPlan& generated = scheduler.schedule();
  scheduler.build_batch(generated);
  CHECK_EQ(batch.num_tokens, 6);
  CHECK_EQ(batch.num_decodes, 1);
  CHECK_EQ(batch.is_decode[0], 1);
  CHECK_EQ(commit_all(scheduler, generated, 9).size(), 1u);
  CHECK(!scheduler.has_work());
}

TEST(addresses_and_rows_stay) {
  Scheduler scheduler(
      {.num_blocks = 64, .block_size = 2, .max_num_sequences = 4, .max_num_batched_tokens = 16, .max_model_len = 64});
  const StepBatch* batch = nullptr;
  const std::int32_t* block_tables = nullptr;
  const std::int32_t* token_ids = nullptr;
  for (SequenceId id = 0; id < 20; ++id) {
    scheduler.add({.id = id, .prompt = {1, 2, 3}, .stop = {.max_total_tokens = 4 + static_cast<std::int32_t>(id)}});
    const Sequence* oldest = scheduler.find(19);
    const std::int32_t row = oldest != nullptr ? oldest->row : -1;
    const StepPlan& plan = scheduler.schedule();
    const StepBatch& built = scheduler.build_batch(plan);
    if (batch == nullptr) {
      batch = &built;
      block_tables = built.block_tables.data();
      token_ids = built.token_ids.data();
    }
    CHECK(&built == batch && built.block_tables.data() == block_tables && built.token_ids.data() == token_ids);
    if (row >= 0) CHECK_EQ(scheduler.find(19)->row, row);
    commit_all(scheduler, plan, 5);
  }
}

}  // namespace
}  // namespace paged

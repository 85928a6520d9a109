// SPDX-License-Identifier: Apache-2.0
// An engine without a model: runs a Scheduler's steps against a pool in which every slot holds a fingerprint of the
// whole prefix up to its token, salt included, as real keys and values do. After each step every position that any
// scheduled sequence attends must hold exactly its own fingerprint, and the token "sampled" is read from the pool, so a
// wrong slot, a wrong hit, a lost copy or a block freed too early shows at once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "core/scheduler.h"

namespace paged::test {

inline std::uint64_t mix(std::uint64_t state, std::uint64_t value) {
  state = (state ^ value) * 0xD6E8FEB86659FD93;
  return state ^ (state >> 32);
}

inline std::uint64_t salt_fingerprint(const std::string& salt) { return mix(1, std::hash<std::string>{}(salt)); }

// Sequences whose ids agree modulo 2 sample alike, so that some of them write equal blocks and others part ways.
inline TokenId next_token(std::uint64_t fingerprint, SequenceId id) {
  return static_cast<TokenId>((mix(fingerprint, id % 2) >> 7) % 3);
}

class Simulation {
 public:
  struct Living {
    std::vector<TokenId> tokens;
    std::size_t num_prompt_tokens = 0;
    StopRules stop;
    std::string salt;
  };
  struct Finished {
    std::vector<TokenId> tokens;
    FinishReason reason;
  };

  explicit Simulation(const SchedulerConfig& config, BlockHash hash = hash_block)
      : scheduler(config, hash),
        config_(config),
        pool_(static_cast<std::size_t>(config.num_blocks) * static_cast<std::size_t>(config.block_size)) {}

  void add(const SequenceSpec& spec) {
    scheduler.add(spec);
    living[spec.id] = {spec.prompt, spec.prompt.size(), spec.stop, spec.cache_salt};
  }
  void fork(SequenceId parent, SequenceId child) {
    CHECK(scheduler.fork(parent, child));
    living[child] = living.at(parent);
  }
  void remove(SequenceId id) {
    CHECK(scheduler.remove(id));
    CHECK(!scheduler.remove(id), "removed twice");
    living.erase(id);
  }

  // remove_in_flight: cancelled after schedule() and before commit(), if it lives.
  void step(SequenceId remove_in_flight = ~SequenceId{0}) {
    const StepPlan& plan = scheduler.schedule();
    check_plan(plan);
    const StepBatch& batch = scheduler.build_batch(plan);
    copy_blocks(plan.block_copies);
    write(plan, batch);
    std::vector<TokenId> sampled = attend_and_sample(plan, batch);
    if (living.contains(remove_in_flight)) remove(remove_in_flight);
    scheduler.check_integrity();
    std::vector<TokenEvent> events;
    scheduler.commit(plan, sampled, events);
    for (const TokenEvent& event : events) apply(event);
    CHECK_EQ(scheduler.has_work(), !living.empty());
    scheduler.check_integrity();
  }

  void run(std::int64_t max_steps = 100000) {
    for (; scheduler.has_work(); step()) CHECK(max_steps-- > 0, "does not come to an end");
  }

  // What the sequence must become, worked out from its prompt alone.
  Finished expected(const SequenceSpec& spec) const {
    Finished result{spec.prompt, FinishReason::kNone};
    std::uint64_t state = salt_fingerprint(spec.cache_salt);
    for (const TokenId token : spec.prompt) state = mix(state, static_cast<std::uint64_t>(token));
    while (result.reason == FinishReason::kNone) {
      const TokenId token = next_token(state, spec.id);
      result.tokens.push_back(token);
      state = mix(state, static_cast<std::uint64_t>(token));
      result.reason = finish_reason({result.tokens, spec.prompt.size(), spec.stop, ""}, token);
    }
    return result;
  }

  Scheduler scheduler;
  std::map<SequenceId, Living> living;
  std::map<SequenceId, Finished> finished;
  std::int64_t num_blocks_copied = 0;

 private:
  FinishReason finish_reason(const Living& sequence, TokenId token) const {
    const auto& ids = sequence.stop.stop_token_ids;
    const auto num_tokens = static_cast<std::int64_t>(sequence.tokens.size());
    const std::int64_t num_generated = num_tokens - static_cast<std::int64_t>(sequence.num_prompt_tokens);
    if (num_generated >= sequence.stop.min_tokens && std::find(ids.begin(), ids.end(), token) != ids.end())
      return FinishReason::kStop;
    const std::int64_t capacity = std::int64_t{config_.num_blocks} * config_.block_size;
    const std::int64_t end =
        std::min({std::int64_t{sequence.stop.max_total_tokens}, std::int64_t{config_.max_model_len}, capacity});
    return num_tokens >= end ? FinishReason::kLength : FinishReason::kNone;
  }

  void check_plan(const StepPlan& plan) const {
    CHECK(plan.num_tokens <= config_.max_num_batched_tokens, plan.num_tokens);
    CHECK(std::ssize(plan.sequences) <= config_.max_num_sequences);
    CHECK_EQ(plan.sequences.empty(), living.empty());
    CHECK_EQ(std::ssize(plan.sequences), std::ptrdiff_t{scheduler.num_running()}, "a running sequence stands still");
    std::int32_t num_tokens = 0;
    std::set<SequenceId> seen;
    for (const ScheduledSequence& scheduled : plan.sequences) {
      CHECK(scheduled.num_scheduled_tokens > 0);
      CHECK(seen.insert(scheduled.id).second);
      num_tokens += scheduled.num_scheduled_tokens;
    }
    CHECK_EQ(num_tokens, plan.num_tokens);
  }

  // Backwards: the order must not matter.
  void copy_blocks(const BlockCopies& copies) {
    const std::set<BlockId> destinations(copies.destinations.begin(), copies.destinations.end());
    CHECK_EQ(destinations.size(), copies.sources.size());
    for (std::size_t i = copies.sources.size(); i-- > 0;) {
      CHECK(!destinations.contains(copies.sources[i]), "a block is source and destination");
      for (std::int32_t offset = 0; offset < config_.block_size; ++offset)
        slot(copies.destinations[i], offset) = slot(copies.sources[i], offset);
    }
    num_blocks_copied += std::ssize(copies.sources);
  }

  void write(const StepPlan& plan, const StepBatch& batch) {
    CHECK_EQ(batch.num_tokens, plan.num_tokens);
    CHECK_EQ(std::ptrdiff_t{batch.num_sequences}, std::ssize(plan.sequences));
    CHECK_EQ(batch.query_start[0], 0);
    std::set<std::int32_t> slots;
    for (std::size_t i = 0; i < plan.sequences.size(); ++i) {
      const Living& sequence = living.at(plan.sequences[i].id);
      std::int32_t position = plan.sequences[i].num_computed_tokens;
      std::uint64_t state = salt_fingerprint(sequence.salt);
      for (std::int32_t p = 0; p < position; ++p) state = mix(state, token_at(sequence, p));
      for (std::int32_t token = batch.query_start[i]; token < batch.query_start[i + 1]; ++token, ++position) {
        const auto t = static_cast<std::size_t>(token);
        CHECK_EQ(batch.positions[t], position);
        CHECK_EQ(static_cast<std::uint64_t>(batch.token_ids[t]), token_at(sequence, position));
        CHECK(slots.insert(batch.slot_mapping[t]).second, "two tokens write slot ", batch.slot_mapping[t]);
        state = mix(state, token_at(sequence, position));
        pool_.at(static_cast<std::size_t>(batch.slot_mapping[t])) = state;
      }
      CHECK_EQ(position, batch.seq_lens[i]);
    }
  }

  std::vector<TokenId> attend_and_sample(const StepPlan& plan, const StepBatch& batch) const {
    std::vector<TokenId> sampled;
    for (std::size_t i = 0; i < plan.sequences.size(); ++i) {
      const Living& sequence = living.at(plan.sequences[i].id);
      const auto row = static_cast<std::ptrdiff_t>(batch.block_table_rows[i]) * batch.block_table_stride;
      std::uint64_t state = salt_fingerprint(sequence.salt);
      std::uint64_t attended = 0;
      for (std::int32_t p = 0; p < batch.seq_lens[i]; ++p) {
        state = mix(state, token_at(sequence, p));
        const BlockId block = batch.block_tables.at(static_cast<std::size_t>(row + p / config_.block_size));
        attended = slot(block, p % config_.block_size);
        CHECK_EQ(attended, state, "sequence ", plan.sequences[i].id, " at position ", p);
      }
      CHECK_EQ(plan.sequences[i].samples, std::cmp_equal(batch.seq_lens[i], sequence.tokens.size()));
      if (!plan.sequences[i].samples) continue;
      CHECK_EQ(batch.logits_rows[sampled.size()], batch.query_start[i + 1] - 1);
      sampled.push_back(next_token(attended, plan.sequences[i].id));
    }
    CHECK_EQ(std::ptrdiff_t{batch.num_logits_rows}, std::ssize(sampled));
    return sampled;
  }

  void apply(const TokenEvent& event) {
    const auto position = living.find(event.id);
    CHECK(position != living.end(), "a token of unknown sequence ", event.id);
    Living& sequence = position->second;
    sequence.tokens.push_back(event.token);
    CHECK(event.finish_reason == finish_reason(sequence, event.token));
    if (event.finish_reason == FinishReason::kNone) return;
    finished[event.id] = {sequence.tokens, event.finish_reason};
    living.erase(position);
  }

  static std::uint64_t token_at(const Living& sequence, std::int32_t position) {
    return static_cast<std::uint64_t>(sequence.tokens.at(static_cast<std::size_t>(position)));
  }
  std::uint64_t& slot(BlockId block, std::int32_t offset) {
    return pool_.at(static_cast<std::size_t>(block * config_.block_size + offset));
  }
  std::uint64_t slot(BlockId block, std::int32_t offset) const {
    return pool_.at(static_cast<std::size_t>(block * config_.block_size + offset));
  }

  SchedulerConfig config_;
  std::vector<std::uint64_t> pool_;  // [num_blocks * block_size]
};

}  // namespace paged::test

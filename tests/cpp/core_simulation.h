// SPDX-License-Identifier: Apache-2.0
// An engine without a model: a Scheduler, a FakeDevice that runs its steps late, and a naive model of what every plan,
// batch and event must be.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "core/scheduler.h"
#include "core_fake_device.h"

namespace paged::test {

class Simulation {
 public:
  struct Living {
    std::vector<TokenId> tokens;
    std::size_t num_prompt_tokens = 0;
    StopRules stop;
    std::string salt;
    bool later = false;            // the host brings its tokens
    std::int32_t next_scored = 0;  // of the prompt's tokens; 0: none
  };
  struct Finished {
    std::vector<TokenId> tokens;
    FinishReason reason;
  };

  explicit Simulation(const SchedulerConfig& config, BlockHash hash = hash_block)
      : scheduler(config, hash), device(config), config_(config) {}

  // later: of a sequence that asks, the host brings the tokens; release() it once, to begin with.
  void add(const SequenceSpec& spec, bool later = false) {
    scheduler.add(spec);
    living[spec.id] = {spec.prompt, spec.prompt.size(), spec.stop, spec.cache_salt, later, spec.first_scored};
    device.futures.emplace(spec.id, Future(spec.id, spec.prompt, spec.cache_salt));
  }
  // A turn of a session: the prompt is what it appends. Returns it with the session's tokens in front.
  SequenceSpec add_turn(const SequenceSpec& spec) {
    const Session& session = *scheduler.sessions().find(spec.session);
    SequenceSpec whole = spec;
    whole.prompt.insert(whole.prompt.begin(), session.tokens.begin(), session.tokens.end());
    whole.cache_salt = session.spec.tenant;
    scheduler.add(spec);
    living[spec.id] = {whole.prompt, whole.prompt.size(), spec.stop, whole.cache_salt, false};
    device.futures.emplace(spec.id, Future(spec.id, whole.prompt, whole.cache_salt));
    return whole;
  }
  void fork(SequenceId parent, SequenceId child) {
    CHECK(scheduler.fork(parent, child));
    const Living& source = living.at(parent);
    device.futures.emplace(child, Future(child, source.tokens, source.salt));
    living[child] = source;
    living[child].next_scored = 0;
  }
  void remove(SequenceId id) {
    CHECK(scheduler.remove(id));
    CHECK(!scheduler.remove(id), "removed twice");
    CHECK(!scheduler.fork(id, ~id), "an ended sequence was forked");
    living.erase(id);
    owed.erase(id);
    check();
  }

  // Of a sequence that asks: what it stands still for.
  void answer(SequenceId id) {
    const auto token = owed.find(id);
    if (token == owed.end()) {
      const bool may = scheduler.find(id)->held && scheduler.find(id)->num_pending_tokens == 0;
      CHECK_EQ(scheduler.release(id), may);
      return;
    }
    CHECK(!scheduler.release(id), "samples again before its token has come");
    std::vector<TokenEvent> events;
    scheduler.supply(id, token->second, events);
    CHECK_EQ(events.size(), 1u);
    owed.erase(token);
    apply(events[0]);
    check();
  }
  void answer_all() {
    std::vector<SequenceId> ids;
    for (const auto& [id, sequence] : living)
      if (scheduler.find(id)->held) ids.push_back(id);
    for (const SequenceId id : ids)
      if (!living.at(id).later || owed.contains(id) || !scheduler.find(id)->awaits_token) answer(id);
  }

  bool can_launch() const { return std::ssize(in_flight_) < config_.max_steps_in_flight; }
  bool can_commit() const { return !in_flight_.empty(); }

  // False if there is nothing to launch.
  bool launch() {
    const std::int64_t num_preemptions = scheduler.num_preemptions();
    const StepPlan& plan = scheduler.schedule();
    check_plan(plan);
    if (can_commit()) CHECK_EQ(scheduler.num_preemptions(), num_preemptions, "preempted under a step in flight");
    begin_transfers();
    if (plan.sequences.empty()) return false;
    const StepBatch& batch = scheduler.build_batch(plan);
    check_batch(plan, batch);
    device.launch(plan, batch);
    in_flight_.push_back(&plan);
    check();
    return true;
  }

  void commit() {
    const StepPlan& plan = *in_flight_.front();
    std::vector<TokenEvent> events;
    std::vector<TokenId> sampled = device.run();
    auto next = sampled.begin();
    for (const ScheduledSequence& scheduled : plan.sequences) {
      next += scheduled.num_scored;
      const auto position = living.find(scheduled.id);
      if (scheduled.num_scored > 0 && position != living.end()) take_scores(scheduled, position->second);
      if (!scheduled.samples) continue;
      if (position != living.end() && position->second.later) owed[scheduled.id] = std::exchange(*next, kTokenLater);
      ++next;
    }
    scheduler.commit(plan, sampled, events);
    begin_transfers();
    in_flight_.pop_front();
    for (const TokenEvent& event : events) apply(event);
    check();
  }

  void begin_transfers() {
    for (const TransferId id : scheduler.take_cancelled()) cancelled.insert(id);
    for (BlockTransfer& transfer : scheduler.take_transfers()) {
      device.begin(transfer);
      transfers.push_back(std::move(transfer));
    }
  }
  // `num_done` of its copies were made, in so many seconds; with an error, the next one failed.
  void end_transfer(std::size_t index = 0, std::int32_t num_done = 1 << 30, const std::string& error = {},
                    double seconds = 0.0) {
    const BlockTransfer transfer = transfers.at(index);
    transfers.erase(transfers.begin() + static_cast<std::ptrdiff_t>(index));
    num_done = std::min(num_done, static_cast<std::int32_t>(transfer.copies.size()));
    device.end(transfer, num_done);
    scheduler.finish_transfer(transfer.id, {num_done, error, seconds, seconds});
    begin_transfers();
    check();
  }

  // Launches what it can, then commits one. remove_in_flight: cancelled in between, if it lives.
  void step(SequenceId remove_in_flight = ~SequenceId{0}) {
    while (can_launch() && launch()) {
    }
    if (living.contains(remove_in_flight)) remove(remove_in_flight);
    if (can_commit())
      commit();
    else if (!transfers.empty())
      end_transfer();
  }

  void run(std::int64_t max_steps = 100000) {
    for (; scheduler.has_work(); step()) {
      answer_all();
      CHECK(max_steps-- > 0, "does not come to an end");
    }
    while (!transfers.empty()) end_transfer();
  }

  // What the sequence must become, worked out from its prompt alone.
  Finished expected(const SequenceSpec& spec) const {
    Finished result{spec.prompt, FinishReason::kNone};
    Future future(spec.id, spec.prompt, spec.cache_salt);
    while (result.reason == FinishReason::kNone) {
      result.tokens.push_back(future.token(result.tokens.size()));
      result.reason = finish_reason({result.tokens, spec.prompt.size(), spec.stop, ""}, result.tokens.back());
    }
    return result;
  }

  Scheduler scheduler;
  FakeDevice device;
  std::map<SequenceId, Living> living;
  std::map<SequenceId, Finished> finished;
  std::deque<BlockTransfer> transfers;  // begun
  std::set<TransferId> cancelled;       // ever
  std::map<SequenceId, TokenId> owed;   // tokens that the host has yet to bring

 private:
  std::int64_t max_num_tokens(const Living& sequence) const {
    const std::int64_t capacity = std::int64_t{config_.num_blocks} * config_.block_size;
    return std::min({std::int64_t{sequence.stop.max_total_tokens}, std::int64_t{config_.max_model_len}, capacity});
  }

  FinishReason finish_reason(const Living& sequence, TokenId token) const {
    const auto& ids = sequence.stop.stop_token_ids;
    const auto num_tokens = static_cast<std::int64_t>(sequence.tokens.size());
    const std::int64_t num_generated = num_tokens - static_cast<std::int64_t>(sequence.num_prompt_tokens);
    if (num_generated >= sequence.stop.min_tokens && std::find(ids.begin(), ids.end(), token) != ids.end())
      return FinishReason::kStop;
    return num_tokens >= max_num_tokens(sequence) ? FinishReason::kLength : FinishReason::kNone;
  }

  // A sequence that asks is held from the plan in which it samples; held before, its last token is not in a plan.
  bool samples_or_computes_less(const StepPlan& plan, SequenceId id) const {
    for (const ScheduledSequence& scheduled : plan.sequences)
      if (scheduled.id == id) return scheduled.samples || scheduled.sampled_position() < num_tokens_after_flight(id);
    return false;
  }

  // Its tokens, those included that steps in flight sample.
  std::int64_t num_tokens_after_flight(SequenceId id) const {
    std::int64_t num_tokens = std::ssize(living.at(id).tokens);
    for (const StepPlan* plan : in_flight_)
      for (const ScheduledSequence& scheduled : plan->sequences)
        if (scheduled.id == id && scheduled.samples) ++num_tokens;
    return num_tokens;
  }

  void check() const {
    scheduler.check_integrity();
    CHECK_EQ(scheduler.has_work(), !living.empty() || can_commit());
    CHECK_EQ(std::ptrdiff_t{scheduler.num_steps_in_flight()}, std::ssize(in_flight_));
    device.for_each_block_in_flight([&](BlockId block) {
      CHECK(scheduler.blocks().num_references(block) > 0, "block ", block, " is free under a step in flight");
    });
  }

  void check_plan(const StepPlan& plan) {
    CHECK(plan.num_tokens <= config_.max_num_batched_tokens, plan.num_tokens);
    CHECK(std::ssize(plan.sequences) <= config_.max_num_sequences);
    CHECK(plan.num_logits_rows <= config_.max_num_sequences, plan.num_logits_rows);
    const bool any_held =
        std::any_of(living.begin(), living.end(), [&](const auto& each) { return scheduler.find(each.first)->held; });
    if (plan.sequences.empty())
      CHECK(living.empty() || can_commit() || any_held || scheduler.blocks().has_transfers(), "nobody advances");
    if (!can_commit()) someone_stood_still_ = false;
    if (someone_stood_still_) CHECK(plan.sequences.empty(), "goes on over the heads of those that found no block");
    std::int32_t num_tokens = 0;
    std::set<SequenceId> seen;
    for (const ScheduledSequence& scheduled : plan.sequences) {
      CHECK(scheduled.num_scheduled_tokens > 0);
      CHECK(seen.insert(scheduled.id).second);
      CHECK(living.contains(scheduled.id), "an ended sequence is scheduled");
      num_tokens += scheduled.num_scheduled_tokens;
    }
    CHECK_EQ(num_tokens, plan.num_tokens);
    for (const auto& [id, sequence] : living) {
      if (scheduler.find(id)->status != SequenceStatus::kRunning) continue;
      const bool may_end = num_tokens_after_flight(id) >= max_num_tokens(sequence);
      CHECK(!may_end || !seen.contains(id), "sequence ", id, " goes on past its end");
      if (scheduler.find(id)->held) CHECK(!seen.contains(id) || samples_or_computes_less(plan, id), "held but goes on");
      if (may_end || seen.contains(id) || scheduler.find(id)->held) continue;
      CHECK(can_commit(), "running sequence ", id, " stands still");
      someone_stood_still_ = true;
    }
  }

  void check_batch(const StepPlan& plan, const StepBatch& batch) const {
    CHECK_EQ(batch.num_tokens, plan.num_tokens);
    CHECK_EQ(std::ptrdiff_t{batch.num_sequences}, std::ssize(plan.sequences));
    CHECK_EQ(batch.query_start[0], 0);
    std::size_t num_logits_rows = 0;
    std::int32_t num_decodes = 0;
    for (std::size_t i = 0; i < plan.sequences.size(); ++i) {
      const ScheduledSequence& scheduled = plan.sequences[i];
      const Living& sequence = living.at(scheduled.id);
      check_tokens(scheduled, batch, batch.query_start[i]);
      CHECK_EQ(batch.query_start[i + 1] - batch.query_start[i], scheduled.num_scheduled_tokens);
      CHECK_EQ(batch.seq_lens[i], scheduled.sampled_position());
      CHECK_EQ(batch.block_table_rows[i], scheduled.row);
      const bool is_decode = std::cmp_greater_equal(scheduled.num_computed_tokens, sequence.num_prompt_tokens);
      CHECK_EQ(batch.is_decode[i], is_decode ? 1 : 0);
      num_decodes += batch.is_decode[i];
      if (!is_decode) CHECK(std::cmp_less_equal(batch.seq_lens[i], sequence.num_prompt_tokens), "mixes two kernels");
      CHECK_EQ(scheduled.samples, std::cmp_equal(batch.seq_lens[i], num_tokens_after_flight(scheduled.id)));
      for (std::int32_t token = scheduled.first_scored; token < scheduled.first_scored + scheduled.num_scored;
           ++token) {
        CHECK_EQ(std::ptrdiff_t{batch.sampled_table_rows[num_logits_rows]}, std::ssize(batch.sampled_table_rows));
        CHECK_EQ(batch.positions[static_cast<std::size_t>(batch.logits_rows[num_logits_rows++])], token - 1);
      }
      if (!scheduled.samples) continue;
      CHECK_EQ(batch.sampled_table_rows[num_logits_rows], scheduled.row);
      CHECK_EQ(batch.logits_rows[num_logits_rows++], batch.query_start[i + 1] - 1);
    }
    CHECK_EQ(batch.num_decodes, num_decodes);
    CHECK_EQ(static_cast<std::size_t>(batch.num_logits_rows), num_logits_rows);
  }

  // Each token from the first one on, once and in order.
  static void take_scores(const ScheduledSequence& scheduled, Living& sequence) {
    CHECK_EQ(scheduled.first_scored, sequence.next_scored, "sequence ", scheduled.id);
    sequence.next_scored += scheduled.num_scored;
    CHECK(std::cmp_less_equal(sequence.next_scored, sequence.num_prompt_tokens));
  }

  void check_tokens(const ScheduledSequence& scheduled, const StepBatch& batch, std::int32_t first) const {
    const Living& sequence = living.at(scheduled.id);
    for (std::int32_t i = 0; i < scheduled.num_scheduled_tokens; ++i) {
      const auto t = static_cast<std::size_t>(first + i);
      const std::int32_t position = scheduled.num_computed_tokens + i;
      const bool is_known = std::cmp_less(position, sequence.tokens.size());
      CHECK_EQ(batch.positions[t], position);
      CHECK_EQ(batch.token_ids[t], is_known ? sequence.tokens[static_cast<std::size_t>(position)] : -1 - scheduled.row);
      CHECK(!scheduler.blocks().cache().contains(batch.slot_mapping[t] / config_.block_size), "writes a cached block");
    }
  }

  void apply(const TokenEvent& event) {
    const auto position = living.find(event.id);
    CHECK(position != living.end(), "a token of unknown sequence ", event.id);
    Living& sequence = position->second;
    CHECK(sequence.next_scored == 0 || std::cmp_greater_equal(sequence.next_scored, sequence.num_prompt_tokens),
          "a token has come before the prompt was scored");
    sequence.tokens.push_back(event.token);
    CHECK(event.finish_reason == finish_reason(sequence, event.token));
    if (event.finish_reason == FinishReason::kNone) return;
    finished[event.id] = {sequence.tokens, event.finish_reason};
    living.erase(position);
  }

  SchedulerConfig config_;
  std::deque<const StepPlan*> in_flight_;  // the oldest first
  bool someone_stood_still_ = false;  // for want of a block, since when no step may be scheduled until all are done
};

}  // namespace paged::test

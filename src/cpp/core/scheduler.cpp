// SPDX-License-Identifier: Apache-2.0
#include "core/scheduler.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/prefetch.h"
#include "core/hazard_policy.h"

namespace paged {
namespace {

std::int64_t num_slots(const SchedulerConfig& config) { return std::int64_t{config.num_blocks} * config.block_size; }

SchedulerConfig checked(SchedulerConfig config) {
  PAGED_CHECK(config.max_num_sequences > 0, "max_num_sequences must be at least 1, got ", config.max_num_sequences);
  PAGED_CHECK(config.max_num_batched_tokens > 0, "max_num_batched_tokens must be at least 1, got ",
              config.max_num_batched_tokens);
  PAGED_CHECK(config.max_model_len > 1, "max_model_len must be at least 2, got ", config.max_model_len);
  PAGED_CHECK(config.max_wait_steps >= 0, "max_wait_steps must be at least 0, got ", config.max_wait_steps);
  PAGED_CHECK(config.max_steps_in_flight > 0, "max_steps_in_flight must be at least 1, got ",
              config.max_steps_in_flight);
  // Each token of a step has a slot, so what a caller allows beyond them costs no memory.
  const auto most = static_cast<std::int32_t>(
      std::clamp<std::int64_t>(num_slots(config), 1, std::numeric_limits<std::int32_t>::max()));
  config.max_num_batched_tokens = std::min(config.max_num_batched_tokens, most);
  config.max_num_sequences = std::min(config.max_num_sequences, config.max_num_batched_tokens);
  if (config.policy == nullptr) config.policy = std::make_shared<HazardPolicy>();
  return config;
}

std::int32_t longest_sequence(const SchedulerConfig& config) {
  return static_cast<std::int32_t>(std::min<std::int64_t>(config.max_model_len, num_slots(config)));
}

// A step's tokens begin at most one more block than they fill for each sequence; the longest sequence may have to copy
// its last block.
BlockManagerConfig block_config(const SchedulerConfig& config) {
  BlockManagerConfig blocks{config.num_blocks, config.block_size, config.enable_prefix_caching,
                            config.cache_generated_tokens};
  const std::int64_t size = std::max(config.block_size, 1);
  const auto blocks_for = [&](std::int64_t num_tokens) { return (num_tokens + size - 1) / size; };
  const std::int64_t of_step = blocks_for(config.max_num_batched_tokens) + config.max_num_sequences;
  blocks.num_step_blocks = static_cast<std::int32_t>(std::min<std::int64_t>(of_step, config.num_blocks));
  blocks.num_sequence_blocks = static_cast<std::int32_t>(blocks_for(longest_sequence(config)) + 1);
  blocks.lower = {config.num_host_blocks, config.num_disk_blocks};
  return blocks;
}

std::uint64_t stop_token_bit(TokenId token) { return std::uint64_t{1} << (static_cast<std::uint32_t>(token) % 64); }

bool stops_at(const Sequence& sequence, TokenId token) {
  if ((sequence.stop_token_bits & stop_token_bit(token)) == 0) return false;
  const StopRules& stop = sequence.stop;
  return sequence.num_generated_tokens() >= stop.min_tokens &&
         std::binary_search(stop.stop_token_ids.begin(), stop.stop_token_ids.end(), token);
}

// What commit() meets a few sequences behind this one. A step is long: all of it may have left the caches.
PAGED_PREFETCH void prefetch_sequences(const StepPlan& plan, std::size_t index, const std::vector<Sequence*>& rows) {
  constexpr std::size_t kFar = 16, kNear = 8;
  if (index + kFar >= plan.sequences.size()) return;
  const auto at = [&](std::size_t i) { return rows[static_cast<std::size_t>(plan.sequences[i].row)]; };
  prefetch_to_write(at(index + kFar), kHotSequenceBytes);
  const std::vector<TokenId>& tokens = at(index + kNear)->tokens;
  prefetch_to_write(tokens.data() + tokens.size(), 1);
}

}  // namespace

Scheduler::Scheduler(const SchedulerConfig& config, BlockHash hash)
    : config_(checked(config)),
      max_num_tokens_(longest_sequence(config_)),
      blocks_(block_config(config_), hash, config_.policy),
      sessions_(blocks_, config_.policy),
      batch_builder_({config_.max_num_batched_tokens, config_.max_num_sequences, blocks_.blocks_for(max_num_tokens_)},
                     config_.block_size),
      rows_(static_cast<std::size_t>(config_.max_num_sequences)),
      plans_(static_cast<std::size_t>(config_.max_steps_in_flight)) {
  const auto num_rows = rows_.size();
  running_.reserve(num_rows);
  for (StepPlan& plan : plans_) {
    plan.sequences.reserve(num_rows);
    plan.block_copies.sources.reserve(num_rows);
    plan.block_copies.destinations.reserve(num_rows);
    plan.retired_blocks.reserve(num_rows * plans_.size());  // as many as decoding ever retires
  }
  for (std::int32_t row = config_.max_num_sequences; row-- > 0;) free_rows_.push_back(row);
}

void Scheduler::check_prompt(const SchedulerConfig& config, std::size_t num_tokens) {
  const auto limit = static_cast<std::size_t>(longest_sequence(config));
  PAGED_CHECK(num_tokens > 0, "the prompt is empty; it needs at least one token");
  PAGED_CHECK(std::cmp_less(num_tokens, config.max_model_len), "the prompt has ", num_tokens,
              " tokens; max_model_len is ", config.max_model_len, ", so it may have at most ", config.max_model_len - 1,
              "; shorten the prompt");
  PAGED_CHECK(num_tokens < limit, "the prompt has ", num_tokens, " tokens; the KV cache holds ", config.num_blocks,
              " blocks of ", config.block_size, " tokens, so it may have at most ", limit - 1,
              "; shorten the prompt or enlarge the KV cache");
}

void Scheduler::add(SequenceSpec spec) {
  Sequence& sequence = take_in(make_sequence(std::move(spec)));
  if (sequence.session != 0) begin_turn(sequence);
  sequence.deadline = sessions_.deadline(sequence.session, sequence.num_tokens());
  queue_of(sequence).push(sequence, step_);
}

void Scheduler::begin_turn(Sequence& sequence) {
  const Session& session = sessions_.begin_turn(sequence.session, !sequence.keeps_answer);
  sequence.owner = session.slot;
  sequence.waits_for_room = session.state == SessionState::kWaitsForRoom;
}

std::unique_ptr<Sequence> Scheduler::make_sequence(SequenceSpec spec) {
  PAGED_CHECK(!sequences_.contains(spec.id), "sequence id ", spec.id, " is in use");
  if (spec.session != 0) {
    PAGED_CHECK(sessions_.may_begin_turn(spec.session), "session ", spec.session, " is closed or has a turn already");
    const Session& session = *sessions_.find(spec.session);
    spec.prompt.insert(spec.prompt.begin(), session.tokens.begin(), session.tokens.end());
    spec.cache_salt = session.spec.tenant;
  }
  const std::size_t num_tokens = spec.prompt.size();
  check_prompt(config_, num_tokens);
  PAGED_CHECK(std::cmp_less(num_tokens, spec.stop.max_total_tokens), "the prompt has ", num_tokens,
              " tokens, which leaves nothing to generate of max_total_tokens = ", spec.stop.max_total_tokens);

  auto sequence = std::make_unique<Sequence>();
  sequence->id = spec.id;
  sequence->tokens = std::move(spec.prompt);
  sequence->stop = std::move(spec.stop);
  std::sort(sequence->stop.stop_token_ids.begin(), sequence->stop.stop_token_ids.end());
  for (const TokenId id : sequence->stop.stop_token_ids) sequence->stop_token_bits |= stop_token_bit(id);
  sequence->num_prompt_tokens = sequence->num_tokens();
  sequence->max_num_tokens = std::min(sequence->stop.max_total_tokens, max_num_tokens_);
  sequence->priority = spec.priority;
  sequence->session = spec.session;
  sequence->keeps_answer = spec.keeps_answer;
  sequence->asks = sequence->held = spec.asks;
  if (spec.first_scored > 0) sequence->next_scored = spec.first_scored;
  sequence->root = blocks_.acquire_root(spec.cache_salt);
  return sequence;
}

Sequence& Scheduler::take_in(std::unique_ptr<Sequence> sequence) {
  sequence->arrival = num_arrivals_++;
  sequence->wait_left = config_.max_wait_steps;
  return *sequences_.emplace(sequence->id, std::move(sequence)).first->second;
}

bool Scheduler::fork(SequenceId parent, SequenceId child) {
  PAGED_CHECK(!sequences_.contains(child), "sequence id ", child, " is in use");
  const auto position = sequences_.find(parent);
  if (position == sequences_.end()) return false;
  Sequence& source = *position->second;
  if (source.status == SequenceStatus::kFinished || source.awaits_token) return false;

  auto sequence = std::make_unique<Sequence>();
  sequence->id = child;
  sequence->tokens = source.tokens;
  sequence->stop = source.stop;
  sequence->stop_token_bits = source.stop_token_bits;
  sequence->num_prompt_tokens = source.num_prompt_tokens;
  sequence->max_num_tokens = source.max_num_tokens;
  sequence->priority = source.priority;
  sequence->deadline = source.deadline;
  sequence->asks = sequence->held = source.asks;
  sequence->root = source.root;
  blocks_.retain_root(source.root);
  Sequence& forked = take_in(std::move(sequence));
  if (source.status == SequenceStatus::kRunning && !free_rows_.empty()) {
    blocks_.share(source, forked);
    start_running(forked);
  } else {
    waiting_.push(forked, step_);
  }
  return true;
}

bool Scheduler::release(SequenceId id) {
  const auto position = sequences_.find(id);
  if (position == sequences_.end()) return false;
  Sequence& sequence = *position->second;
  if (sequence.status == SequenceStatus::kFinished || !sequence.held || sequence.awaits_token ||
      sequence.num_pending_tokens > 0)
    return false;
  sequence.held = false;
  return true;
}

void Scheduler::supply(SequenceId id, TokenId token, std::vector<TokenEvent>& events) {
  const auto position = sequences_.find(id);
  if (position == sequences_.end()) return;
  Sequence& sequence = *position->second;
  if (sequence.status == SequenceStatus::kFinished || !sequence.awaits_token) return;
  sequence.awaits_token = sequence.held = false;
  const bool waits = sequence.status == SequenceStatus::kWaiting;  // preempted meanwhile
  events.push_back(accept(sequence, token));
  if (sequence.status != SequenceStatus::kFinished) return;
  if (waits) {
    sequence.status = SequenceStatus::kWaiting;
    queue_of(sequence).remove(sequence, step_);
  } else {
    std::erase(running_, &sequence);
    stop_running(sequence);
  }
  drop(sequence);
}

bool Scheduler::remove(SequenceId id) {
  const auto position = sequences_.find(id);
  if (position == sequences_.end()) return false;
  Sequence& sequence = *position->second;
  if (sequence.status == SequenceStatus::kFinished) return false;  // it only awaits the end of its steps in flight
  if (sequence.status == SequenceStatus::kWaiting) {
    queue_of(sequence).remove(sequence, step_);
    drop(sequence);
    return true;
  }
  sequence.status = SequenceStatus::kFinished;
  std::erase(running_, &sequence);
  if (sequence.num_steps_in_flight > 0) return true;
  stop_running(sequence);
  drop(sequence);
  return true;
}

void Scheduler::commit(const StepPlan& plan, std::span<const TokenId> sampled, std::vector<TokenEvent>& events) {
  PAGED_INVARIANT(num_steps_in_flight_ > 0 && &plan == &plan_in_flight(0),
                  "commit() of a plan that is not the oldest in flight");
  PAGED_INVARIANT(std::cmp_equal(sampled.size(), plan.num_logits_rows), "the step samples ", plan.num_logits_rows,
                  " tokens, got ", sampled.size());
  --num_steps_in_flight_;
  blocks_.release_sources(plan.block_copies);
  std::vector<BlockId>& retired_blocks = newest_plan().retired_blocks;
  bool any_finished = false;
  std::size_t num_used = 0;
  for (std::size_t i = 0; i < plan.sequences.size(); ++i) {
    prefetch_sequences(plan, i, rows_);
    const ScheduledSequence& scheduled = plan.sequences[i];
    Sequence& sequence = at_row(scheduled.row);
    commit_counts(sequence, scheduled);
    num_used += static_cast<std::size_t>(scheduled.num_scored);
    blocks_.seal(sequence, retired_blocks);
    if (scheduled.samples) {
      const TokenId token = sampled[num_used++];
      if (sequence.status == SequenceStatus::kRunning) take_sample(sequence, token, events);
    }
    any_finished |= sequence.status == SequenceStatus::kFinished;
  }
  blocks_.release_retired(plan.retired_blocks);
  if (any_finished) drop_finished(plan);
  blocks_.store_ahead();
}

void Scheduler::commit_counts(Sequence& sequence, const ScheduledSequence& scheduled) {
  --sequence.num_steps_in_flight;
  sequence.num_scheduled_tokens -= scheduled.num_scheduled_tokens;
  sequence.num_pending_tokens -= scheduled.samples ? 1 : 0;
  if (scheduled.num_scored > 0) sequence.next_scored = scheduled.first_scored + scheduled.num_scored;
  // What was computed from dropped tokens does not count.
  sequence.num_computed_tokens =
      std::min(sequence.num_computed_tokens + scheduled.num_scheduled_tokens, sequence.num_tokens());
}

void Scheduler::take_sample(Sequence& sequence, TokenId token, std::vector<TokenEvent>& events) {
  if (token == kTokenLater) {
    PAGED_INVARIANT(sequence.asks, "sequence ", sequence.id, " awaits a token but does not ask");
    sequence.awaits_token = true;
  } else {
    events.push_back(accept(sequence, token));
  }
}

TokenEvent Scheduler::accept(Sequence& sequence, TokenId token) {
  sequence.tokens.push_back(token);
  FinishReason reason = FinishReason::kNone;
  if (stops_at(sequence, token))
    reason = FinishReason::kStop;
  else if (sequence.num_tokens() >= sequence.max_num_tokens)
    reason = FinishReason::kLength;
  if (reason != FinishReason::kNone) sequence.status = SequenceStatus::kFinished;
  return {sequence.id, token, reason, sequence.row};
}

void Scheduler::drop_finished(const StepPlan& plan) {
  std::erase_if(running_, [](const Sequence* sequence) { return sequence->status == SequenceStatus::kFinished; });
  for (const ScheduledSequence& scheduled : plan.sequences) {
    Sequence& sequence = at_row(scheduled.row);
    if (sequence.status != SequenceStatus::kFinished || sequence.num_steps_in_flight > 0) continue;
    stop_running(sequence);
    drop(sequence);
  }
}

void Scheduler::drop(Sequence& sequence) {
  if (sequence.session != 0) {
    const auto num_kept = sequence.keeps_answer ? sequence.num_tokens() : sequence.num_prompt_tokens;
    sessions_.end_turn(sequence.session, std::span(sequence.tokens).first(static_cast<std::size_t>(num_kept)));
  }
  blocks_.release_root(sequence.root);
  sequences_.erase(sequence.id);
}

const Sequence* Scheduler::find(SequenceId id) const {
  const auto position = sequences_.find(id);
  return position == sequences_.end() ? nullptr : position->second.get();
}

}  // namespace paged

// SPDX-License-Identifier: Apache-2.0
#include "core/scheduler.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace paged {
namespace {

SchedulerConfig checked(SchedulerConfig config) {
  PAGED_CHECK(config.max_num_sequences > 0, "max_num_sequences must be at least 1, got ", config.max_num_sequences);
  PAGED_CHECK(config.max_num_batched_tokens > 0, "max_num_batched_tokens must be at least 1, got ",
              config.max_num_batched_tokens);
  PAGED_CHECK(config.max_model_len > 1, "max_model_len must be at least 2, got ", config.max_model_len);
  PAGED_CHECK(config.max_wait_steps >= 0, "max_wait_steps must be at least 0, got ", config.max_wait_steps);
  config.max_num_sequences = std::min(config.max_num_sequences, config.max_num_batched_tokens);
  return config;
}

std::int32_t longest_sequence(const SchedulerConfig& config) {
  const std::int64_t capacity = std::int64_t{config.num_blocks} * config.block_size;
  return static_cast<std::int32_t>(std::min<std::int64_t>(config.max_model_len, capacity));
}

bool is_stop_token(const StopRules& stop, TokenId token) {
  return std::find(stop.stop_token_ids.begin(), stop.stop_token_ids.end(), token) != stop.stop_token_ids.end();
}

}  // namespace

Scheduler::Scheduler(const SchedulerConfig& config, BlockHash hash)
    : config_(checked(config)),
      max_num_tokens_(longest_sequence(config_)),
      blocks_({config_.num_blocks, config_.block_size, config_.enable_prefix_caching}, hash),
      batch_builder_({config_.max_num_batched_tokens, config_.max_num_sequences, blocks_.blocks_for(max_num_tokens_)},
                     config_.block_size),
      rows_(static_cast<std::size_t>(config_.max_num_sequences)) {
  const auto num_rows = rows_.size();
  running_.reserve(num_rows);
  plan_.sequences.reserve(num_rows);
  plan_.block_copies.sources.reserve(num_rows);
  plan_.block_copies.destinations.reserve(num_rows);
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

void Scheduler::add(SequenceSpec spec) { waiting_.push(take_in(make_sequence(std::move(spec))), step_); }

std::unique_ptr<Sequence> Scheduler::make_sequence(SequenceSpec spec) {
  const std::size_t num_tokens = spec.prompt.size();
  PAGED_CHECK(!sequences_.contains(spec.id), "sequence id ", spec.id, " is in use");
  check_prompt(config_, num_tokens);
  PAGED_CHECK(std::cmp_less(num_tokens, spec.stop.max_total_tokens), "the prompt has ", num_tokens,
              " tokens, which leaves nothing to generate of max_total_tokens = ", spec.stop.max_total_tokens);

  auto sequence = std::make_unique<Sequence>();
  sequence->id = spec.id;
  sequence->tokens = std::move(spec.prompt);
  sequence->stop = std::move(spec.stop);
  sequence->num_prompt_tokens = sequence->num_tokens();
  sequence->max_num_tokens = std::min(sequence->stop.max_total_tokens, max_num_tokens_);
  sequence->priority = spec.priority;
  sequence->root = blocks_.acquire_root(spec.cache_salt);
  return sequence;
}

Sequence& Scheduler::take_in(std::unique_ptr<Sequence> sequence) {
  sequence->arrival = num_arrivals_++;
  sequence->wait_left = config_.max_wait_steps;
  const SequenceId id = sequence->id;
  return *sequences_.emplace(id, std::move(sequence)).first->second;
}

bool Scheduler::fork(SequenceId parent, SequenceId child) {
  PAGED_INVARIANT(!step_in_flight_, "fork of sequence ", parent, " during a step");
  PAGED_CHECK(!sequences_.contains(child), "sequence id ", child, " is in use");
  const auto position = sequences_.find(parent);
  if (position == sequences_.end()) return false;
  const Sequence& source = *position->second;

  auto sequence = std::make_unique<Sequence>();
  sequence->id = child;
  sequence->tokens = source.tokens;
  sequence->stop = source.stop;
  sequence->num_prompt_tokens = source.num_prompt_tokens;
  sequence->max_num_tokens = source.max_num_tokens;
  sequence->priority = source.priority;
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

bool Scheduler::remove(SequenceId id) {
  const auto position = sequences_.find(id);
  if (position == sequences_.end()) return false;
  Sequence& sequence = *position->second;
  if (sequence.status == SequenceStatus::kFinished) return false;  // removed before, during this very step
  if (sequence.status == SequenceStatus::kWaiting) {
    waiting_.remove(sequence, step_);
    drop(sequence);
    return true;
  }
  sequence.status = SequenceStatus::kFinished;
  if (!step_in_flight_) drop_finished();
  return true;
}

const StepPlan& Scheduler::schedule() {
  PAGED_INVARIANT(!step_in_flight_, "schedule() before the last plan was committed");
  step_in_flight_ = true;
  plan_.clear();
  waiting_.promote_due(++step_);
  const bool preempted = schedule_running();
  if (!preempted) admit_waiting();
  PAGED_INVARIANT(!plan_.sequences.empty() || sequences_.empty(), "none of ", sequences_.size(),
                  " sequences can advance");
  return plan_;
}

// True if a sequence was preempted.
bool Scheduler::schedule_running() {
  bool preempted = false;
  for (std::size_t i = 0; i < running_.size(); ++i) {
    while (i < running_.size() && !advance(i)) {
      preempt_least_urgent();
      preempted = true;
    }
  }
  return preempted;
}

bool Scheduler::advance(std::size_t index) {
  Sequence& sequence = *running_[index];
  const auto num_behind = static_cast<std::int32_t>(running_.size() - index - 1);
  const std::int32_t num_scheduled_tokens =
      std::min(sequence.num_tokens() - sequence.num_computed_tokens, budget_left() - num_behind);
  if (!blocks_.grow(sequence, num_scheduled_tokens, plan_.block_copies)) return false;
  append_to_plan(sequence, num_scheduled_tokens);
  return true;
}

void Scheduler::admit_waiting() {
  while (!waiting_.empty() && !free_rows_.empty() && budget_left() > 0) {
    Sequence& sequence = waiting_.front();
    if (!blocks_.admit(sequence, num_running())) return;
    waiting_.remove(sequence, step_);
    start_running(sequence);
    num_cached_tokens_ += sequence.num_computed_tokens;
    append_to_plan(sequence, std::min(sequence.num_tokens() - sequence.num_computed_tokens, budget_left()));
  }
}

void Scheduler::append_to_plan(const Sequence& sequence, std::int32_t num_scheduled_tokens) {
  const bool samples = sequence.num_computed_tokens + num_scheduled_tokens == sequence.num_tokens();
  plan_.sequences.push_back({sequence.id, sequence.row, sequence.num_computed_tokens, num_scheduled_tokens, samples});
  plan_.num_tokens += num_scheduled_tokens;
  plan_.num_logits_rows += samples ? 1 : 0;
}

// The sequence holds its blocks already.
void Scheduler::start_running(Sequence& sequence) {
  if (!sequence.admitted_before) {
    sequence.admitted_before = true;
    sequence.num_cached_tokens = std::min(sequence.num_computed_tokens, sequence.num_prompt_tokens);
    // So that decoding never allocates.
    sequence.tokens.reserve(static_cast<std::size_t>(sequence.max_num_tokens));
    sequence.block_table.reserve(static_cast<std::size_t>(blocks_.blocks_for(sequence.max_num_tokens)));
  }
  sequence.status = SequenceStatus::kRunning;
  sequence.row = free_rows_.back();
  sequence.num_row_blocks = 0;
  free_rows_.pop_back();
  rows_[static_cast<std::size_t>(sequence.row)] = &sequence;
  const auto position = std::upper_bound(running_.begin(), running_.end(), &sequence,
                                         [](const Sequence* a, const Sequence* b) { return is_more_urgent(*a, *b); });
  running_.insert(position, &sequence);
}

// The caller takes it out of running_.
void Scheduler::stop_running(Sequence& sequence) {
  blocks_.release(sequence);
  rows_[static_cast<std::size_t>(sequence.row)] = nullptr;
  free_rows_.push_back(sequence.row);
  sequence.row = -1;
}

void Scheduler::preempt_least_urgent() {
  Sequence& victim = *running_.back();
  running_.pop_back();
  stop_running(victim);
  waiting_.push(victim, step_);
  ++num_preemptions_;
}

const StepBatch& Scheduler::build_batch(const StepPlan& plan) { return batch_builder_.build(plan, rows_); }

void Scheduler::commit(const StepPlan& plan, std::span<const TokenId> sampled, std::vector<TokenEvent>& events) {
  PAGED_INVARIANT(step_in_flight_ && &plan == &plan_, "commit() of a plan that is not in flight");
  PAGED_INVARIANT(std::cmp_equal(sampled.size(), plan.num_logits_rows), "the step samples ", plan.num_logits_rows,
                  " tokens, got ", sampled.size());
  step_in_flight_ = false;
  blocks_.release_sources(plan.block_copies);
  bool any_finished = false;
  std::size_t num_used = 0;
  for (const ScheduledSequence& scheduled : plan.sequences) {
    Sequence& sequence = at_row(scheduled.row);
    sequence.num_computed_tokens += scheduled.num_scheduled_tokens;
    blocks_.seal(sequence);
    if (scheduled.samples) {
      const TokenId token = sampled[num_used++];
      if (sequence.status == SequenceStatus::kRunning) events.push_back(accept(sequence, token));
    }
    any_finished |= sequence.status == SequenceStatus::kFinished;
  }
  if (any_finished) drop_finished();
}

TokenEvent Scheduler::accept(Sequence& sequence, TokenId token) {
  sequence.tokens.push_back(token);
  FinishReason reason = FinishReason::kNone;
  if (sequence.num_generated_tokens() >= sequence.stop.min_tokens && is_stop_token(sequence.stop, token))
    reason = FinishReason::kStop;
  else if (sequence.num_tokens() >= sequence.max_num_tokens)
    reason = FinishReason::kLength;
  if (reason != FinishReason::kNone) sequence.status = SequenceStatus::kFinished;
  return {sequence.id, token, reason};
}

void Scheduler::drop_finished() {
  std::size_t num_kept = 0;
  for (Sequence* sequence : running_) {
    if (sequence->status == SequenceStatus::kRunning) {
      running_[num_kept++] = sequence;
      continue;
    }
    stop_running(*sequence);
    drop(*sequence);
  }
  running_.resize(num_kept);
}

void Scheduler::drop(Sequence& sequence) {
  blocks_.release_root(sequence.root);
  sequences_.erase(sequence.id);
}

const Sequence* Scheduler::find(SequenceId id) const {
  const auto position = sequences_.find(id);
  return position == sequences_.end() ? nullptr : position->second.get();
}

}  // namespace paged

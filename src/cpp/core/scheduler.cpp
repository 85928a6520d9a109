// SPDX-License-Identifier: Apache-2.0
#include "core/scheduler.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "core/hazard_policy.h"

namespace paged {
namespace {

SchedulerConfig checked(SchedulerConfig config) {
  PAGED_CHECK(config.max_num_sequences > 0, "max_num_sequences must be at least 1, got ", config.max_num_sequences);
  PAGED_CHECK(config.max_num_batched_tokens > 0, "max_num_batched_tokens must be at least 1, got ",
              config.max_num_batched_tokens);
  PAGED_CHECK(config.max_model_len > 1, "max_model_len must be at least 2, got ", config.max_model_len);
  PAGED_CHECK(config.max_wait_steps >= 0, "max_wait_steps must be at least 0, got ", config.max_wait_steps);
  PAGED_CHECK(config.max_steps_in_flight > 0, "max_steps_in_flight must be at least 1, got ",
              config.max_steps_in_flight);
  config.max_num_sequences = std::min(config.max_num_sequences, config.max_num_batched_tokens);
  if (config.policy == nullptr) config.policy = std::make_shared<HazardPolicy>();
  return config;
}

std::int32_t longest_sequence(const SchedulerConfig& config) {
  const std::int64_t capacity = std::int64_t{config.num_blocks} * config.block_size;
  return static_cast<std::int32_t>(std::min<std::int64_t>(config.max_model_len, capacity));
}

bool is_stop_token(const StopRules& stop, TokenId token) {
  return std::binary_search(stop.stop_token_ids.begin(), stop.stop_token_ids.end(), token);
}

}  // namespace

Scheduler::Scheduler(const SchedulerConfig& config, BlockHash hash)
    : config_(checked(config)),
      max_num_tokens_(longest_sequence(config_)),
      blocks_({config_.num_blocks, config_.block_size, config_.enable_prefix_caching, config_.cache_generated_tokens},
              hash, config_.policy),
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
  queue_of(sequence).push(sequence, step_);
}

void Scheduler::begin_turn(Sequence& sequence) {
  const Session& session = sessions_.begin_turn(sequence.session, !sequence.keeps_answer);
  sequence.owner = session.slot;
  sequence.waits_for_room = session.state == SessionState::kWaitsForRoom;
  if (sessions_.orders_by_session()) sequence.arrival = session.arrival;
}

std::unique_ptr<Sequence> Scheduler::make_sequence(SequenceSpec spec) {
  PAGED_CHECK(!sequences_.contains(spec.id), "sequence id ", spec.id, " is in use");
  if (spec.session != 0) {
    PAGED_CHECK(sessions_.may_begin_turn(spec.session), "session ", spec.session, " is closed or has a turn already");
    const Session& session = *sessions_.find(spec.session);
    spec.prompt.insert(spec.prompt.begin(), session.tokens.begin(), session.tokens.end());
    spec.cache_salt = session.spec.cache_salt;
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
  const Sequence& source = *position->second;
  if (source.status == SequenceStatus::kFinished || source.awaits_token) return false;

  auto sequence = std::make_unique<Sequence>();
  sequence->id = child;
  sequence->tokens = source.tokens;
  sequence->stop = source.stop;
  sequence->num_prompt_tokens = source.num_prompt_tokens;
  sequence->max_num_tokens = source.max_num_tokens;
  sequence->priority = source.priority;
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

const StepPlan& Scheduler::schedule() {
  PAGED_INVARIANT(num_steps_in_flight_ < config_.max_steps_in_flight, "schedule() with ", num_steps_in_flight_,
                  " steps in flight");
  plan_ = &plans_[plan_index(step_ + 1)];
  plan_->clear();
  if (must_preempt_ && num_steps_in_flight_ > 0) return *plan_;
  must_preempt_ = false;
  waiting_.promote_due(++step_);
  if (schedule_running()) admit_waiting();
  if (plan_->sequences.empty()) {
    const bool any_held = std::any_of(running_.begin(), running_.end(), [](const Sequence* s) { return s->held; });
    PAGED_INVARIANT(num_steps_in_flight_ > 0 || sequences_.empty() || any_held, "none of ", sequences_.size(),
                    " sequences can advance");
    --step_;
  } else {
    ++num_steps_in_flight_;
  }
  return *plan_;
}

// False if blocks ran out.
bool Scheduler::schedule_running() {
  bool had_blocks = true;
  for (std::size_t i = 0; i < running_.size(); ++i) {
    while (i < running_.size() && !advance(i)) {
      had_blocks = false;
      must_preempt_ = num_steps_in_flight_ > 0;
      if (must_preempt_) break;  // it stands still, and those behind it that need no block do not
      preempt_least_urgent();
    }
  }
  return had_blocks;
}

// False if it finds no block.
bool Scheduler::advance(std::size_t index) {
  Sequence& sequence = *running_[index];
  if (sequence.num_tokens() + sequence.num_pending_tokens >= sequence.max_num_tokens) return true;  // it surely ends
  const auto num_behind = static_cast<std::int32_t>(running_.size() - index - 1);
  const std::int32_t num_scheduled_tokens = num_tokens_to_schedule(sequence, budget_left() - num_behind, num_behind);
  if (num_scheduled_tokens == 0) return true;  // it is held, or finds no row of logits
  if (!blocks_.grow(sequence, num_scheduled_tokens, plan_->block_copies)) return false;
  append_to_plan(sequence, num_scheduled_tokens);
  return true;
}

void Scheduler::admit_waiting() {
  // One at a time: all at once would take each other's blocks.
  Sequence* overdue = step_ < next_forced_step_ ? nullptr : waiting_for_room_.most_overdue(step_);
  if (overdue != nullptr) {
    waiting_for_room_.remove(*overdue, step_);
    overdue->waits_for_room = false;
    sessions_.need_no_room(overdue->session);
    waiting_.push(*overdue, step_);
    next_forced_step_ = step_ + config_.max_wait_steps;
  }
  while (!waiting_.empty())
    if (!admit_front(waiting_, true)) return;
  while (!waiting_for_room_.empty())
    if (!admit_front(waiting_for_room_, running_.empty())) return;
}

bool Scheduler::admit_front(WaitingQueue& queue, bool may_take_held) {
  if (free_rows_.empty() || budget_left() <= 0 || plan_->num_logits_rows >= config_.max_num_sequences) return false;
  Sequence& sequence = queue.front();
  if (!blocks_.admit(sequence, num_running(), may_take_held)) return false;
  queue.remove(sequence, step_);
  sequence.waits_for_room = false;  // if it is preempted it comes back with the others
  start_running(sequence);
  num_cached_tokens_ += sequence.num_computed_tokens;
  if (sequence.session != 0) sessions_.admitted(sequence.session, sequence.num_computed_tokens, sequence.num_tokens());
  const std::int32_t num_scheduled_tokens = num_tokens_to_schedule(sequence, budget_left(), 0);
  if (num_scheduled_tokens > 0) append_to_plan(sequence, num_scheduled_tokens);  // else it is held
  return true;
}

std::int32_t Scheduler::num_tokens_to_schedule(const Sequence& sequence, std::int32_t budget,
                                               std::int32_t num_behind) const {
  const std::int32_t position = sequence.num_planned_tokens();
  if (sequence.next_scored < sequence.num_prompt_tokens) {
    const std::int32_t num_unscored = std::max(0, sequence.next_scored - 1 - position);
    budget = std::min(budget, num_unscored + config_.max_num_sequences - plan_->num_logits_rows - num_behind);
  }
  const std::int32_t known = sequence.num_tokens() + sequence.num_pending_tokens;
  const std::int32_t last = sequence.held ? known - 1 : known;
  const std::int32_t end = position < sequence.num_prompt_tokens ? std::min(sequence.num_prompt_tokens, last) : last;
  return std::max(0, std::min(end - position, budget));
}

void Scheduler::append_to_plan(Sequence& sequence, std::int32_t num_scheduled_tokens) {
  const std::int32_t position = sequence.num_planned_tokens();
  const bool samples = position + num_scheduled_tokens == sequence.num_tokens() + sequence.num_pending_tokens;
  plan_->sequences.push_back({sequence.id, sequence.row, position, num_scheduled_tokens, samples});
  ScheduledSequence& scheduled = plan_->sequences.back();
  if (sequence.next_scored < sequence.num_prompt_tokens) plan_scores(sequence, scheduled);
  plan_->num_tokens += num_scheduled_tokens;
  plan_->num_logits_rows += scheduled.num_logits_rows();
  sequence.num_scheduled_tokens += num_scheduled_tokens;
  sequence.num_pending_tokens += samples ? 1 : 0;
  sequence.held |= sequence.asks && samples;
  ++sequence.num_steps_in_flight;
}

// Of the prompt's tokens whose predecessors are in the chunk. Those of steps in flight lie before it.
void Scheduler::plan_scores(const Sequence& sequence, ScheduledSequence& scheduled) {
  const std::int32_t begin = std::max(sequence.next_scored, scheduled.num_computed_tokens + 1);
  const std::int32_t end = std::min(scheduled.sampled_position() + 1, sequence.num_prompt_tokens);
  scheduled.first_scored = begin;
  scheduled.num_scored = std::max(0, end - begin);
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

// No step in flight includes it. The caller takes it out of running_.
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
  if (victim.session != 0) sessions_.preempted(victim.session);
  waiting_.push(victim, step_);
  ++num_preemptions_;
}

const StepBatch& Scheduler::build_batch(const StepPlan& plan) { return batch_builder_.build(plan, rows_); }

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
  for (const ScheduledSequence& scheduled : plan.sequences) {
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
  if (sequence.num_generated_tokens() >= sequence.stop.min_tokens && is_stop_token(sequence.stop, token))
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

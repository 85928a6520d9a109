// SPDX-License-Identifier: Apache-2.0
// The part of the scheduler that makes a step's plan: who runs, who is admitted, who gives way.
#include <algorithm>

#include "base/check.h"
#include "core/scheduler.h"

namespace paged {
namespace {

constexpr double kForcedShare = 0.05;  // of the device's time, for those who go without room

}  // namespace

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
    PAGED_INVARIANT(num_steps_in_flight_ > 0 || sequences_.empty() || any_held || blocks_.has_transfers(), "none of ",
                    sequences_.size(), " sequences can advance");
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

// One whose deadline has passed goes without room, but only so often that what this costs, to compute what it lacks and
// as much again for those whose blocks it takes, is a small share of the time: all at once would take each other's.
void Scheduler::force_overdue() {
  if (waiting_for_room_.empty() || sessions_.now() < next_forced_at_) return;
  Sequence& overdue = waiting_for_room_.earliest_deadline();
  if (sessions_.now() < overdue.deadline) return;
  const double num_cached = blocks_.num_cached_tokens(overdue);
  next_forced_at_ =
      sessions_.now() +
      2 * span_cost(num_cached, overdue.num_tokens() - num_cached, blocks_.pressure().cost) / kForcedShare;
  waiting_for_room_.remove(overdue, step_);
  overdue.waits_for_room = false;
  sessions_.need_no_room(overdue.session);
  waiting_.push(overdue, step_);
}

void Scheduler::admit_waiting() {
  force_overdue();
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

}  // namespace paged

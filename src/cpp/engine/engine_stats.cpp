// SPDX-License-Identifier: Apache-2.0
// What the engine tells of itself: counters, rates, and the records of a trace.
#include <algorithm>
#include <chrono>
#include <iterator>

#include "engine/engine.h"

namespace paged {

// A step's time begins when the one before it has finished, if it was launched while that ran.
void Engine::account(const InFlight& step) {
  const auto now = Request::Clock::now();
  last_step_seconds_ = std::chrono::duration<double>(now - std::max(step.launched, last_finish_)).count();
  step_seconds_.add(last_step_seconds_);
  const std::int32_t num_prefill_tokens = step.plan->num_tokens - step.num_decode_tokens;
  num_prefill_tokens_ += num_prefill_tokens;
  if (num_prefill_tokens > 16) {
    const double seconds = last_step_seconds_ / num_prefill_tokens;
    prefill_token_seconds_ += (prefill_token_seconds_ == 0.0 ? 1.0 : 0.1) * (seconds - prefill_token_seconds_);
    scheduler_->set_step_cost({prefill_token_seconds_, 0.0});
  }
  if (trace_.active()) {
    StepRecord record;
    record.num_prefill_tokens = step.plan->num_tokens - step.num_decode_tokens;
    record.num_decode_tokens = step.num_decode_tokens;
    record.num_sequences = static_cast<std::int32_t>(std::ssize(step.plan->sequences));
    record.num_waiting = scheduler_->num_waiting();
    record.num_free_blocks = scheduler_->num_free_blocks();
    record.part_seconds = parts_.take();
    trace_.add_step(record, std::max(step.launched, last_finish_), now);
  }
  last_finish_ = now;
}

void Engine::record_request(const Live& live, FinishReason reason) {
  const RequestTimings timings = live.request->timings();
  RequestRecord record;
  record.id = live.request->id();
  record.scheduled = timings.queued_seconds;
  record.first_token = timings.first_token_seconds;
  record.finished = std::chrono::duration<double>(Request::Clock::now() - live.request->submitted()).count();
  record.num_prompt_tokens = static_cast<std::int32_t>(live.request->spec().prompt.size());
  record.num_cached_tokens = live.request->num_cached_tokens();
  record.num_generated_tokens = live.request->num_tokens();
  record.reason = reason;
  trace_.add_request(record, live.request->submitted());
}

void Engine::publish_stats() {
  const std::lock_guard lock(mutex_);
  generated_rate_.add(num_generated_tokens_ - stats_.num_generated_tokens, last_finish_);
  prefill_rate_.add(num_prefill_tokens_ - stats_.num_prefill_tokens, last_finish_);
  stats_.num_generated_tokens = num_generated_tokens_;
  stats_.num_prefill_tokens = num_prefill_tokens_;
  stats_.num_failed = num_failed_;
  stats_.num_cancelled = num_cancelled_;
  stats_.num_blocks = config_.num_blocks;
  stats_.num_cached_blocks = scheduler_->blocks().cache().size();
  if (mover_ != nullptr) {
    stats_.num_host_blocks = config_.num_host_blocks;
    const BlockManager& blocks = scheduler_->blocks();
    stats_.num_host_cached_blocks = blocks.num_copies(Tier::kHost);
    stats_.num_bytes_stored = blocks.traffic(Tier::kHost).num_stored * mover_->block_bytes();
    stats_.num_bytes_loaded = blocks.traffic(Tier::kHost).num_loaded * mover_->block_bytes();
    stats_.num_disk_blocks = config_.num_disk_blocks;
    stats_.num_disk_cached_blocks = blocks.num_copies(Tier::kDisk);
    stats_.num_disk_bytes_stored = blocks.traffic(Tier::kDisk).num_stored * mover_->block_bytes();
    stats_.num_disk_bytes_loaded = blocks.traffic(Tier::kDisk).num_loaded * mover_->block_bytes();
    stats_.num_disk_errors = blocks.num_failed_transfers();
  }
  stats_.last_step_seconds = last_step_seconds_;
  stats_.step_seconds = step_seconds_;
  stats_.num_steps = num_steps_;
  stats_.num_finished = num_finished_;
  stats_.num_preemptions = scheduler_->num_preemptions();
  stats_.num_cached_tokens = scheduler_->num_cached_tokens();
  stats_.num_waiting = scheduler_->num_waiting() + num_not_started_;
  stats_.num_running = scheduler_->num_running();
  stats_.num_free_blocks = scheduler_->num_free_blocks();
}

void Engine::publish_end() {
  const std::lock_guard lock(mutex_);
  stats_.num_failed = num_failed_;
  stats_.num_cancelled = num_cancelled_;
  stats_.num_finished = num_finished_;
  stats_.num_waiting = stats_.num_running = 0;
  stats_.num_free_blocks = stats_.num_blocks;
}

}  // namespace paged

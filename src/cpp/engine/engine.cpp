// SPDX-License-Identifier: Apache-2.0
#include "engine/engine.h"

#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/blocked_signals.h"
#include "engine/check_request.h"

namespace paged {
namespace {

BatchView view_of(const StepBatch& batch) {
  BatchView view;
  view.num_tokens = batch.num_tokens;
  view.num_sequences = batch.num_sequences;
  view.num_logits_rows = batch.num_logits_rows;
  view.num_decodes = batch.num_decodes;
  view.token_ids = batch.token_ids.data();
  view.positions = batch.positions.data();
  view.slot_mapping = batch.slot_mapping.data();
  view.query_start = batch.query_start.data();
  view.seq_lens = batch.seq_lens.data();
  view.block_table_rows = batch.block_table_rows.data();
  view.is_decode = batch.is_decode.data();
  view.block_tables = batch.block_tables.data();
  view.logits_rows = batch.logits_rows.data();
  view.sampled_table_rows = batch.sampled_table_rows.data();
  view.block_table_stride = batch.block_table_stride;
  return view;
}

SchedulerConfig config_for(const Executor& executor, SchedulerConfig config, const PolicyDesk* policy_desk) {
  check_fits(config, executor.limits());
  config.max_steps_in_flight = executor.max_steps_in_flight();
  if (policy_desk != nullptr) config.policy = policy_desk->policy();
  return config;
}

}  // namespace

Engine::Engine(const SchedulerConfig& config, std::unique_ptr<Executor> executor,
               std::shared_ptr<const TokenTable> token_table, std::shared_ptr<PolicyDesk> policy_desk,
               const std::string& disk_folder)
    : config_(config_for(*executor, config, policy_desk.get())),
      pid_(getpid()),
      executor_(std::move(executor)),
      token_table_(std::move(token_table)),
      vocab_size_(executor_->vocab_size()),
      guide_desk_(std::make_shared<GuideDesk>(
          vocab_size_,
          [this](GuideAnswer answer) { post({nullptr, 0, std::make_unique<GuideAnswer>(std::move(answer))}); })),
      policy_desk_(std::move(policy_desk)),
      scheduler_(std::make_unique<Scheduler>(config_)),
      row_states_(static_cast<std::size_t>(config_.max_num_sequences)) {
  in_flight_.reserve(static_cast<std::size_t>(config_.max_steps_in_flight));
  make_mover(disk_folder);
  publish_stats();
  if (policy_desk_ != nullptr) open_policy_desk();
  const BlockedSignals blocked;
  thread_ = std::thread([this] { loop(); });
}

Engine::~Engine() { close(); }

void Engine::check_process() const {
  if (getpid() != pid_)
    throw EngineClosedError(
        "this engine was made in another process: threads do not survive fork(); make the engine "
        "after the fork, or use the 'spawn' start method");
}

void Engine::check_running() const {
  if (!failure_.empty())
    throw InternalError("the engine has failed and must be rebuilt; the first cause was: " + failure_);
  if (closing_) throw EngineClosedError("the engine is closed");
}

std::shared_ptr<Request> Engine::submit(RequestSpec spec) {
  check_process();
  check_request(spec, vocab_size_, token_table_ != nullptr);
  Scheduler::check_prompt(config_, spec.prompt.size());
  std::shared_ptr<Request> request;
  {
    const std::lock_guard lock(mutex_);
    check_running();  // under the lock of the inbox: whoever gets in is seen by the loop, its last round included
    request = std::make_shared<Request>(next_id_++, std::move(spec), token_table_);
    inbox_.push_back({request});
  }
  wake_->notify_one();
  return request;
}

void Engine::end_early(SequenceId id, FinishReason reason) {
  if (getpid() != pid_) return;
  post({nullptr, id, nullptr, reason});
}

void Engine::post(Message message) {
  {
    const std::lock_guard lock(mutex_);
    if (closing_ || !failure_.empty()) return;
    inbox_.push_back(std::move(message));
  }
  wake_->notify_one();
}

void Engine::close() {
  if (is_of_another_process()) {  // locks may be held for ever: leave the copy alone
    if (thread_.joinable()) thread_.detach();
    static_cast<void>(mover_.release());
    static_cast<void>(executor_.release());
    return;
  }
  const std::lock_guard close_lock(close_mutex_);
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  wake_->notify_one();
  if (thread_.joinable()) thread_.join();
  mover_.reset();
  executor_.reset();
  scheduler_.reset();
}

bool Engine::closed() const {
  if (getpid() != pid_) return true;
  const std::lock_guard lock(mutex_);
  return closing_;
}

EngineStats Engine::stats() {
  if (getpid() != pid_) return {};
  // Before the lock, which whoever proposes takes after the desk's.
  const std::int64_t num_late = policy_desk_ == nullptr ? 0 : policy_desk_->num_late();
  const std::int64_t num_failed = policy_desk_ == nullptr ? 0 : policy_desk_->num_failed();
  const std::lock_guard lock(mutex_);
  const auto now = Request::Clock::now();
  stats_.num_late_proposals = num_late;
  stats_.num_failed_proposals = num_failed;
  stats_.generated_tokens_per_second = generated_rate_.per_second(now);
  stats_.prefill_tokens_per_second = prefill_rate_.per_second(now);
  return stats_;
}

void Engine::loop() noexcept {
  std::string failure;
  try {
    while (receive()) {
      while (std::ssize(in_flight_) < config_.max_steps_in_flight && launch_step()) {
      }
      start_transfers();
      if (!in_flight_.empty()) finish_step();
      start_transfers();
      publish_stats();
      parts_.mark(StepPart::kStatistics);
      announce_ended();
      parts_.mark(StepPart::kDeliver);
    }
  } catch (const std::exception& error) {
    failure = error.what();
  } catch (...) {
    failure = "unknown exception";
  }
  {
    const std::lock_guard lock(mutex_);
    failure_ = failure;
    std::move(inbox_.begin(), inbox_.end(), std::back_inserter(received_));  // behind those that a failure left there
    inbox_.clear();
    if (failure.empty()) closing_ = true;
  }
  for (Message& message : received_)
    if (message.submitted != nullptr)
      live_.emplace(message.submitted->id(), Live{message.submitted});
    else if (message.command != nullptr)
      message.command->done.set_exception(std::make_exception_ptr(EngineClosedError("the engine is closed")));
  end_all(failure.empty() ? FinishReason::kCancelled : FinishReason::kError, failure);
  guide_desk_->close();
  if (policy_desk_ != nullptr) policy_desk_->close();
}

bool Engine::receive() {
  {
    std::unique_lock lock(mutex_);
    if ((live_.empty() || stalled_) && in_flight_.empty())
      wake_->wait(lock, [&] { return closing_ || !inbox_.empty(); });
    if (closing_) return false;
    std::swap(received_, inbox_);
  }
  parts_.begin(trace_.active());
  stalled_ = false;
  tell_time();
  for (Message& message : received_) {
    if (message.submitted != nullptr)
      admit(message.submitted);
    else if (message.command != nullptr)
      take_command(*std::exchange(message.command, nullptr));
    else if (message.answer != nullptr)
      take_answer(*message.answer);
    else if (message.transfer != 0)
      finish_transfer(message.transfer, message.transfer_end);
    else
      end(message.ended, message.reason);
  }
  received_.clear();
  parts_.mark(StepPart::kReceive);
  return true;
}

void Engine::admit(std::shared_ptr<Request> request) {
  const RequestSpec& spec = request->spec();
  const SequenceId id = request->id();
  std::unique_ptr<LogitsPolicy> policy = LogitsPolicy::make(spec, vocab_size_);
  Live& live = live_.emplace(id, Live{std::move(request), -1, std::move(policy)}).first->second;
  ++num_not_started_;
  const auto first = live_.find(spec.follows);
  if (first != live_.end() && first->first != id && !first->second.has_token)
    first->second.followers.push_back(id);
  else
    start(live);
}

void Engine::start(Live& live) {
  live.started = true;
  --num_not_started_;
  const RequestSpec& spec = live.request->spec();
  const SequenceId id = live.request->id();
  SequenceSpec sequence;
  sequence.id = id;
  sequence.prompt = spec.prompt;
  sequence.priority = spec.priority;
  sequence.cache_salt = spec.cache_salt;
  sequence.stop.max_total_tokens = static_cast<std::int32_t>(std::min<std::int64_t>(
      static_cast<std::int64_t>(spec.prompt.size()) + spec.sampling.max_tokens, config_.max_model_len));
  sequence.stop.min_tokens = spec.sampling.min_tokens;
  sequence.stop.stop_token_ids = spec.sampling.stop_token_ids;
  sequence.asks = spec.guide != GuideKind::kNone;
  if (spec.sampling.num_prompt_logprobs >= 0) sequence.first_scored = spec.sampling.first_prompt_logprob;
  sequence.session = spec.session;
  sequence.keeps_answer = spec.keeps_answer;
  if (spec.session != 0 && !prepare_turn(sequence, spec)) return;
  scheduler_->add(std::move(sequence));
  if (spec.guide == GuideKind::kMask) ask_guide(*live.request, {}, nullptr);
  if (spec.guide == GuideKind::kToken) scheduler_->release(id);
}

void Engine::start_followers(Live& live) {
  for (const SequenceId id : std::exchange(live.followers, {})) {
    const auto follower = live_.find(id);
    if (follower != live_.end()) start(follower->second);  // else it has ended meanwhile
  }
}

bool Engine::launch_step() {
  if (live_.empty()) return false;
  const StepPlan& plan = scheduler_->schedule();
  parts_.mark(StepPart::kSchedule);
  stalled_ = plan.sequences.empty();
  if (stalled_) return false;
  const StepBatch& batch = scheduler_->build_batch(plan);
  parts_.mark(StepPart::kBuild);
  InFlight step{&plan, Request::Clock::now(), batch.num_decodes};
  write_sampling_rows(plan, step);
  parts_.mark(StepPart::kSampling);
  const StepExtras extras = extras_.view();
  executor_->launch({view_of(batch), batch.changed_table_entries, plan.block_copies.sources,
                     plan.block_copies.destinations, sampling_rows_, step.has_extras ? &extras : nullptr});
  in_flight_.push_back(std::move(step));
  parts_.mark(StepPart::kLaunch);
  return true;
}

void Engine::write_sampling_rows(const StepPlan& plan, InFlight& step) {
  sampling_rows_.clear();
  extras_.clear();
  for (const ScheduledSequence& scheduled : plan.sequences) {
    if (scheduled.num_scored > 0) write_prompt_scores(scheduled, step);
    RowState& state = row_states_[static_cast<std::size_t>(scheduled.row)];
    if (!scheduled.samples) {
      if (state.id != scheduled.id) mark_scheduled(*live_.at(scheduled.id).request);
      continue;
    }
    if (state.id != scheduled.id) state = enter_row(scheduled);
    state.sampling.position = scheduled.sampled_position();
    sampling_rows_.push_back(state.sampling);
    if (state.has_policy) write_extras(scheduled, *state.live, step);
  }
  step.has_extras = !extras_.empty();
}

void Engine::mark_scheduled(Request& request) const {
  const RequestSpec& spec = request.spec();
  const auto num_prompt_tokens = static_cast<std::int32_t>(spec.prompt.size());
  request.mark_scheduled(std::min(spec.sampling.max_tokens, config_.max_model_len - num_prompt_tokens));
}

// The sequence samples there for the first time since it was admitted.
Engine::RowState Engine::enter_row(const ScheduledSequence& scheduled) {
  Live& live = live_.at(scheduled.id);
  if (live.row < 0) {
    live.request->set_num_cached_tokens(scheduler_->find(scheduled.id)->num_cached_tokens);
    mark_scheduled(*live.request);
  }
  leave_row(scheduled.id, live);
  live.row = scheduled.row;
  const SamplingParams& params = live.request->spec().sampling;
  return {scheduled.id,           &live, live.request.get(),
          live.policy != nullptr, false, {params.temperature, params.top_p, std::max(params.top_k, 0), params.seed, 0}};
}

void Engine::leave_row(SequenceId id, const Live& live) {
  if (live.row < 0) return;
  RowState& state = row_states_[static_cast<std::size_t>(live.row)];
  if (state.id == id) state = {};
}

void Engine::finish_step() {
  std::span<const TokenId> sampled = executor_->wait();
  parts_.mark(StepPart::kWait);
  InFlight step = std::move(in_flight_.front());
  in_flight_.erase(in_flight_.begin());
  account(step);
  parts_.mark(StepPart::kStatistics);
  if (!step.exports.empty()) {
    sampled_.assign(sampled.begin(), sampled.end());
    for (const InFlight::Export& each : step.exports) sampled_[static_cast<std::size_t>(each.logits_row)] = kTokenLater;
    sampled = sampled_;
  }
  events_.clear();
  delivered_at_ = last_finish_;
  scheduler_->commit(*step.plan, sampled, events_);
  parts_.mark(StepPart::kCommit);
  stalled_ = false;
  deliver_events(step);
  wake_consumers();
  ask_about_exports(step);
  parts_.mark(StepPart::kDeliver);
  ++num_steps_;
}

}  // namespace paged

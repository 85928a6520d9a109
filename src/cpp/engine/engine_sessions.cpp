// SPDX-License-Identifier: Apache-2.0
// The engine's part in sessions: commands come through the inbox like everything else, and the core is told the time.
#include <algorithm>
#include <chrono>
#include <exception>
#include <future>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "engine/engine.h"

namespace paged {

void Engine::run_between_steps(Command command) {
  check_process();
  auto pending = std::make_shared<PendingCommand>(PendingCommand{std::move(command)});
  std::future<void> done = pending->done.get_future();
  {
    const std::lock_guard lock(mutex_);
    check_running();
    inbox_.push_back({nullptr, 0, nullptr, FinishReason::kNone, std::move(pending)});
  }
  wake_->notify_one();
  done.get();
}

void Engine::run_some_time(Command command) {
  if (getpid() != pid_) return;
  post(
      {nullptr, 0, nullptr, FinishReason::kNone, std::make_shared<PendingCommand>(PendingCommand{std::move(command)})});
}

void Engine::take_command(PendingCommand& command) {
  try {
    command.run(*scheduler_);
    command.done.set_value();
  } catch (const InternalError&) {
    command.done.set_exception(std::current_exception());
    throw;
  } catch (...) {
    command.done.set_exception(std::current_exception());
  }
}

// Proposals come through the inbox like everything else.
void Engine::open_policy_desk() {
  policy_desk_->open([this](Proposal proposal) {
    run_some_time([this, proposal = std::move(proposal)](Scheduler& scheduler) {
      scheduler.sessions().propose(*policy_desk_->policy(), proposal);
    });
  });
}

// On the clock that Python calls time.monotonic().
void Engine::tell_time() {
  scheduler_->set_now(std::chrono::duration<double>(Request::Clock::now().time_since_epoch()).count());
}

bool Engine::prepare_turn(SequenceSpec& sequence, const RequestSpec& spec) {
  const Session* session = scheduler_->sessions().find(spec.session);
  std::string problem;
  if (session == nullptr) {
    problem = "its session is closed";
  } else if (!scheduler_->sessions().may_begin_turn(spec.session)) {
    problem = "its session has a turn that has not ended";
  } else {
    const std::size_t num_tokens = session->tokens.size() + spec.prompt.size();
    const std::int64_t total = static_cast<std::int64_t>(num_tokens) + spec.sampling.max_tokens;
    sequence.stop.max_total_tokens = static_cast<std::int32_t>(std::min<std::int64_t>(total, config_.max_model_len));
    try {
      Scheduler::check_prompt(config_, num_tokens);
    } catch (const std::invalid_argument& error) {
      problem = error.what();
    }
  }
  if (!problem.empty()) end(sequence.id, FinishReason::kError, problem);
  return problem.empty();
}

void Engine::announce_ended(bool all) {
  std::erase_if(ended_, [&](Ended& ended) {
    const Request& request = *ended.live.request;
    if (!all && request.spec().session != 0 && scheduler_->find(request.id()) != nullptr) return false;
    ended.live.request->finish(ended.reason, ended.error);
    return true;
  });
}

}  // namespace paged

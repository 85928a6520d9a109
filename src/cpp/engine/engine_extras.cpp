// SPDX-License-Identifier: Apache-2.0
// The part of the step loop for requests that ask for more than a sampled token: edits of logits, scores, and guides.
#include <utility>

#include "engine/engine.h"

namespace paged {

// Of the row that write_sampling_rows() has just added.
void Engine::write_extras(const ScheduledSequence& scheduled, Live& live, InFlight& step) {
  const Sequence& sequence = *scheduler_->find(scheduled.id);
  const bool pending = sequence.num_pending_tokens > 1;  // besides the one that this step samples
  PAGED_INVARIANT(sequence.num_pending_tokens <= 2, "edits of logits know one step in flight");
  NextToken next{static_cast<std::int32_t>(std::ssize(sampling_rows_)) - 1,
                 scheduled.sampled_position() - sequence.num_prompt_tokens, pending ? scheduled.row : -1};
  const RequestSpec& spec = live.request->spec();
  if (spec.guide != GuideKind::kToken) {
    live.policy->write(next, extras_);
    if (spec.sampling.num_logprobs >= 0) step.scores.push_back({scheduled.id, 1 + spec.sampling.num_logprobs, false});
    return;
  }
  extras_.exported.push_back(next.logits_row);
  auto sample = std::make_unique<HostSample>();
  sample->sampling = sampling_rows_.back();
  const std::int32_t logits_row = std::exchange(next.logits_row, 0);
  live.policy->write(next, sample->extras);
  step.exports.push_back({scheduled.id, logits_row, std::move(sample)});
}

void Engine::write_prompt_scores(const ScheduledSequence& scheduled, InFlight& step) {
  const Live& live = live_.at(scheduled.id);
  const RequestSpec& spec = live.request->spec();
  for (std::int32_t i = 0; i < scheduled.num_scored; ++i) {
    const TokenId token = spec.prompt[static_cast<std::size_t>(scheduled.first_scored + i)];
    live.policy->write_prompt_score(static_cast<std::int32_t>(std::ssize(sampling_rows_)), token, extras_);
    sampling_rows_.emplace_back();  // what it samples means nothing
  }
  step.scores.push_back({scheduled.id, scheduled.num_scored * (1 + spec.sampling.num_prompt_logprobs), true});
}

void Engine::deliver_events(const InFlight& step) {
  if (step.scores.empty()) {
    constexpr std::size_t kFar = 16, kNear = 8;
    const auto request_at = [&](std::size_t i) {
      return row_states_[static_cast<std::size_t>(events_[i].row)].request;
    };
    for (std::size_t i = 0; i < events_.size(); ++i) {
      if (i + kFar < events_.size()) {  // a step is long: all of them may have left the caches
        if (const Request* request = request_at(i + kFar)) request->prefetch();
        if (const Request* request = request_at(i + kNear)) request->prefetch_end();
      }
      deliver(events_[i], {});
    }
    return;
  }
  std::span<const ScoredToken> scores = executor_->extra_outputs().scores;
  std::unordered_map<SequenceId, std::span<const ScoredToken>> of_sampled;
  for (const InFlight::Scores& each : step.scores) {
    const std::span<const ScoredToken> own = scores.first(static_cast<std::size_t>(each.count));
    scores = scores.subspan(own.size());
    const auto live = live_.find(each.id);
    if (!each.of_prompt)
      of_sampled[each.id] = own;
    else if (live != live_.end())
      live->second.request->append_prompt_scores(own);
  }
  for (const TokenEvent& event : events_) {
    const auto own = of_sampled.find(event.id);
    deliver(event, own == of_sampled.end() ? std::span<const ScoredToken>() : own->second);
  }
}

void Engine::ask_about_exports(InFlight& step) {
  for (std::size_t i = 0; i < step.exports.size(); ++i) {
    const auto found = live_.find(step.exports[i].id);
    if (found == live_.end()) continue;
    const auto vocab = static_cast<std::size_t>(vocab_size_);
    const std::span<const float> logits = executor_->extra_outputs().exported.subspan(i * vocab, vocab);
    step.exports[i].sample->logits.assign(logits.begin(), logits.end());
    ask_guide(*found->second.request, {}, std::move(step.exports[i].sample));
  }
}

void Engine::ask_guide(const Request& request, std::vector<TokenId> tokens, std::unique_ptr<HostSample> sample) {
  guide_desk_->ask({request.id(), request.spec().guide_key, std::move(tokens), std::move(sample), false});
}

void Engine::take_answer(GuideAnswer& answer) {
  const auto found = live_.find(answer.id);
  if (found == live_.end()) return;                                     // cancelled meanwhile
  if (found->second.request->spec().guide == GuideKind::kNone) return;  // to a question of another engine
  switch (answer.kind) {
    case GuideAnswer::Kind::kMask: found->second.policy->allow(std::move(answer.mask)); [[fallthrough]];
    case GuideAnswer::Kind::kAnything: scheduler_->release(answer.id); break;
    case GuideAnswer::Kind::kToken: {
      events_.clear();
      delivered_at_ = Request::Clock::now();
      scheduler_->supply(answer.id, answer.token, events_);
      for (const TokenEvent& event : events_) deliver(event, found->second, answer.scores);
      wake_consumers();
      break;
    }
    case GuideAnswer::Kind::kStop: end(answer.id, FinishReason::kStop); break;
    case GuideAnswer::Kind::kError: end(answer.id, FinishReason::kError, answer.error); break;
  }
}

}  // namespace paged

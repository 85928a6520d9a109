// SPDX-License-Identifier: Apache-2.0
// The step loop's way back: sampled tokens to their requests, whoever waits for them, and the ends of requests.
#include <iterator>
#include <utility>

#include "engine/engine.h"

namespace paged {

void Engine::deliver(const TokenEvent& event, std::span<const ScoredToken> scores) {
  RowState& state = row_states_[static_cast<std::size_t>(event.row)];
  if (state.id != event.id) return;  // it ended while its step was in flight
  if (!state.is_plain || event.token < 0) {
    Live& live = *state.live;
    state.is_plain = live.policy == nullptr && live.request->spec().guide == GuideKind::kNone;
    return deliver(event, live, scores);
  }
  if (append(event, *state.request, scores))
    end(event.id, FinishReason::kStop);
  else if (event.finish_reason != FinishReason::kNone)
    end(event.id, event.finish_reason);
}

void Engine::deliver(const TokenEvent& event, Live& live, std::span<const ScoredToken> scores) {
  if (event.token < 0) {  // the executor's mark for logits that are not numbers: only their request fails
    end(event.id, FinishReason::kError,
        live.policy != nullptr
            ? "no token is left to sample: what the request allows (guide, allowed_token_ids, bad_words, min_tokens, "
              "logit_bias) excludes every token, or the model's logits are not numbers"
            : "the model's logits are not numbers (NaN): the weights or the prompt overflow this dtype");
    return;
  }
  live.has_token = true;
  if (!live.followers.empty()) start_followers(live);
  if (live.policy != nullptr) live.policy->append(event.token);
  if (append(event, *live.request, scores))
    end(event.id, FinishReason::kStop);
  else if (event.finish_reason != FinishReason::kNone)
    end(event.id, event.finish_reason);
  else if (live.request->spec().guide == GuideKind::kMask)
    ask_guide(*live.request, {event.token}, nullptr);
}

// True: a stop string is complete.
bool Engine::append(const TokenEvent& event, Request& request, std::span<const ScoredToken> scores) {
  ++num_generated_tokens_;
  const Request::Appended appended =
      request.append({event.token, event.finish_reason == FinishReason::kStop, scores, delivered_at_}, news_);
  if (appended.has_waiter) woken_.push_back(&request);
  return appended.stopped;
}

// After all tokens of a step, so that a queue of news is locked, and who waits for it woken, once.
void Engine::wake_consumers() {
  for (Request* request : woken_) request->wake();
  woken_.clear();
  news_.send();
}

void Engine::end(SequenceId id, FinishReason reason, std::string_view error) {
  const auto found = live_.find(id);
  if (found == live_.end()) return;
  scheduler_->remove(id);  // unless it has finished by itself
  leave_row(id, found->second);
  num_not_started_ -= found->second.started ? 0 : 1;
  start_followers(found->second);
  const RequestSpec& spec = found->second.request->spec();
  if (spec.guide != GuideKind::kNone) guide_desk_->ask({id, spec.guide_key, {}, nullptr, true});
  num_failed_ += reason == FinishReason::kError ? 1 : 0;
  num_cancelled_ += reason == FinishReason::kCancelled ? 1 : 0;
  if (trace_.active()) record_request(found->second, reason);
  ended_.push_back({std::move(found->second), reason, std::string(error)});
  live_.erase(found);
  ++num_finished_;
}

void Engine::end_all(FinishReason reason, std::string_view error) {
  num_finished_ += std::ssize(live_);
  (reason == FinishReason::kError ? num_failed_ : num_cancelled_) += std::ssize(live_);
  publish_end();
  announce_ended(true);
  for (auto& [id, live] : live_) {
    if (trace_.active()) record_request(live, reason);
    live.request->finish(reason, error);
  }
  live_.clear();
}

}  // namespace paged

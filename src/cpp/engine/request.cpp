// SPDX-License-Identifier: Apache-2.0
#include "engine/request.h"

#include <algorithm>
#include <utility>

namespace paged {

void Request::check_process() const {
  if (getpid() != pid_)
    throw EngineClosedError(
        "this request was made in another process: threads do not survive fork(), nothing more comes");
}

bool Request::is_ready(bool until_finished) const {
  return finished() || (!until_finished && num_taken_tokens_ < token_ids_.size());
}

bool Request::ready(bool until_finished) const {
  check_process();
  const std::lock_guard lock(mutex_);
  return is_ready(until_finished);
}

bool Request::wait_for(std::chrono::milliseconds timeout) {
  check_process();
  std::unique_lock lock(mutex_);
  ++num_waiters_;
  const bool result = changed_->wait_for(lock, timeout, [&] { return is_ready(false); });
  --num_waiters_;
  return result;
}

bool Request::wait_finished_for(std::chrono::milliseconds timeout) {
  check_process();
  std::unique_lock lock(mutex_);
  return changed_->wait_for(lock, timeout, [&] { return is_ready(true); });
}

void Request::notify(std::shared_ptr<NewsQueue> queue, bool until_finished) {
  check_process();
  const std::lock_guard lock(mutex_);
  if (is_ready(until_finished))
    queue->push(id_);
  else
    watchers_.push_back({std::move(queue), until_finished});
}

void Request::wake_watchers() {
  std::erase_if(watchers_, [&](const Watcher& watcher) {
    if (!is_ready(watcher.until_finished)) return false;
    watcher.queue->push(id_);
    return true;
  });
}

Delta Request::answer_from(std::size_t token, std::size_t text) const {
  const auto first = static_cast<std::ptrdiff_t>(token);
  return {{token_ids_.begin() + first, token_ids_.end()},
          text_.substr(text),
          finish_reason_.load(),
          {scores_.begin() + first * (spec_.sampling.num_logprobs + 1), scores_.end()}};
}

Delta Request::take() {
  check_process();
  const std::lock_guard lock(mutex_);
  Delta delta = answer_from(num_taken_tokens_, num_taken_text_);
  num_taken_tokens_ = token_ids_.size();
  num_taken_text_ = text_.size();
  return delta;
}

Delta Request::answer() const {
  check_process();
  const std::lock_guard lock(mutex_);
  return answer_from(0, 0);
}

std::vector<ScoredToken> Request::prompt_scores() const {
  check_process();
  const std::lock_guard lock(mutex_);
  return prompt_scores_;
}

std::string Request::error() const {
  check_process();
  const std::lock_guard lock(mutex_);
  return error_;
}

RequestTimings Request::timings() const {
  check_process();
  const std::lock_guard lock(mutex_);
  return timings_;
}

std::int32_t Request::num_tokens() const {
  check_process();
  const std::lock_guard lock(mutex_);
  return static_cast<std::int32_t>(token_ids_.size());
}

std::vector<float> Request::token_seconds() const {
  check_process();
  const std::lock_guard lock(mutex_);
  return token_seconds_;
}

std::int32_t Request::num_cached_tokens() const {
  check_process();
  const std::lock_guard lock(mutex_);
  return num_cached_tokens_;
}

void Request::append_prompt_scores(std::span<const ScoredToken> scores) {
  const std::lock_guard lock(mutex_);
  prompt_scores_.insert(prompt_scores_.end(), scores.begin(), scores.end());
}

void Request::append(TokenId token, std::string_view text, std::span<const ScoredToken> scores, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  const double seconds = since_submit(now);
  if (timings_.first_token_seconds < 0) timings_.first_token_seconds = seconds;
  token_seconds_.push_back(static_cast<float>(seconds));
  token_ids_.push_back(token);
  text_ += text;
  scores_.insert(scores_.end(), scores.begin(), scores.end());
  if (num_waiters_ > 0) changed_->notify_all();
  if (!watchers_.empty()) wake_watchers();
}

void Request::set_num_cached_tokens(std::int32_t count) {
  const std::lock_guard lock(mutex_);
  num_cached_tokens_ = count;
}

void Request::mark_scheduled() {
  const std::lock_guard lock(mutex_);
  if (timings_.queued_seconds < 0) timings_.queued_seconds = since_submit();
}

void Request::finish(FinishReason reason, std::string_view text, std::string_view error) {
  const std::lock_guard lock(mutex_);
  if (finished()) return;
  timings_.total_seconds = since_submit();
  text_ += text;
  error_ = error;
  finish_reason_ = reason;
  changed_->notify_all();
  wake_watchers();
}

}  // namespace paged

// SPDX-License-Identifier: Apache-2.0
#include "engine/request.h"

#include <utility>

namespace paged {

bool Request::wait_for(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  const auto ready = [&] { return finish_reason_ != FinishReason::kNone || !pending_.token_ids.empty(); };
  ++num_waiters_;
  const bool result = changed_.wait_for(lock, timeout, ready);
  --num_waiters_;
  return result;
}

bool Request::wait_finished_for(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, timeout, [&] { return finish_reason_ != FinishReason::kNone; });
}

Delta Request::take() {
  const std::lock_guard lock(mutex_);
  pending_.finish_reason = finish_reason_;
  return std::exchange(pending_, {});
}

bool Request::finished() const {
  const std::lock_guard lock(mutex_);
  return finish_reason_ != FinishReason::kNone;
}

std::string Request::error() const {
  const std::lock_guard lock(mutex_);
  return error_;
}

RequestTimings Request::timings() const {
  const std::lock_guard lock(mutex_);
  return timings_;
}

std::int32_t Request::num_cached_tokens() const {
  const std::lock_guard lock(mutex_);
  return num_cached_tokens_;
}

void Request::append(TokenId token, std::string_view text) {
  const std::lock_guard lock(mutex_);
  if (timings_.first_token_seconds < 0)
    timings_.first_token_seconds = std::chrono::duration<double>(Clock::now() - submitted_).count();
  pending_.token_ids.push_back(token);
  pending_.text += text;
  if (num_waiters_ > 0) changed_.notify_all();
}

void Request::set_num_cached_tokens(std::int32_t count) {
  const std::lock_guard lock(mutex_);
  num_cached_tokens_ = count;
}

void Request::finish(FinishReason reason, std::string_view text, std::string_view error) {
  const std::lock_guard lock(mutex_);
  if (finish_reason_ != FinishReason::kNone) return;
  timings_.total_seconds = std::chrono::duration<double>(Clock::now() - submitted_).count();
  pending_.text += text;
  error_ = error;
  finish_reason_ = reason;
  changed_.notify_all();
}

}  // namespace paged

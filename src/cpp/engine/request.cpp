// SPDX-License-Identifier: Apache-2.0
#include "engine/request.h"

#include <algorithm>
#include <utility>

namespace paged {

Request::Request(SequenceId id, RequestSpec spec, std::shared_ptr<const TokenTable> token_table)
    : decodes_at_once_(token_table != nullptr && !spec.sampling.stop.empty()),
      id_(id),
      spec_(std::move(spec)),
      token_table_(std::move(token_table)),
      stream_(spec_.sampling.stop, spec_.sampling.include_stop_str_in_output) {}

void Request::check_process() const {
  if (getpid() != pid_)
    throw EngineClosedError(
        "this request was made in another process: threads do not survive fork(), nothing more comes");
}

bool Request::is_ready(bool until_finished) const {
  return finished() || (!until_finished && num_taken_tokens_ < tokens_.size());
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

void Request::tell_watchers(NewsBatch& news) {
  std::erase_if(watchers_, [&](Watcher& watcher) {
    if (!is_ready(watcher.until_finished)) return false;
    news.add(std::move(watcher.queue), id_);
    return true;
  });
}

// The tokens that have come since become text. True: a stop string is complete.
bool Request::decode() {
  bool stopped = false;
  const SamplingParams& params = spec_.sampling;
  for (; token_table_ != nullptr && num_decoded_ < tokens_.size(); ++num_decoded_) {
    // Unless it is asked for, the text of a stop token is not part of the answer; the token itself is, as in vLLM.
    const bool is_stop_token = ends_with_stop_token_ && num_decoded_ + 1 == tokens_.size();
    std::string_view bytes;
    if (!is_stop_token || params.include_stop_str_in_output)
      bytes = token_table_->bytes_of(tokens_[num_decoded_].id, params.skip_special_tokens);
    if (stream_.passes(bytes)) {
      text_ += bytes;
      continue;
    }
    stopped = stream_.push(bytes, !is_stop_token && std::cmp_greater_equal(num_decoded_, params.min_tokens));
    text_ += stream_.take();
  }
  if (finished()) text_ += stream_.finish();
  return stopped;
}

Delta Request::answer_from(std::size_t token, std::size_t text) {
  decode();
  Delta delta{{}, text_.substr(text), finish_reason_.load(), {}};
  delta.token_ids.reserve(tokens_.size() - token);
  for (std::size_t i = token; i < tokens_.size(); ++i) delta.token_ids.push_back(tokens_[i].id);
  delta.scores.assign(scores_.begin() + static_cast<std::ptrdiff_t>(token) * (spec_.sampling.num_logprobs + 1),
                      scores_.end());
  return delta;
}

Delta Request::take() {
  check_process();
  const std::lock_guard lock(mutex_);
  Delta delta = answer_from(num_taken_tokens_, num_taken_text_);
  num_taken_tokens_ = tokens_.size();
  num_taken_text_ = text_.size();
  return delta;
}

Delta Request::answer() {
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
  return static_cast<std::int32_t>(tokens_.size());
}

std::vector<float> Request::token_seconds() const {
  check_process();
  const std::lock_guard lock(mutex_);
  std::vector<float> seconds;
  seconds.reserve(tokens_.size());
  for (const Token& token : tokens_) seconds.push_back(token.seconds);
  return seconds;
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

Request::Appended Request::append(const NewToken& token, NewsBatch& news) {
  const std::lock_guard lock(mutex_);
  const double seconds = since_submit(token.time);
  if (tokens_.empty()) timings_.first_token_seconds = seconds;
  tokens_.push_back({token.id, static_cast<float>(seconds)});
  if (token.is_stop_token) ends_with_stop_token_ = true;
  if (!token.scores.empty()) scores_.insert(scores_.end(), token.scores.begin(), token.scores.end());
  if (!watchers_.empty()) tell_watchers(news);
  return {decodes_at_once_ && decode(), num_waiters_ > 0};
}

void Request::set_num_cached_tokens(std::int32_t count) {
  const std::lock_guard lock(mutex_);
  num_cached_tokens_ = count;
}

void Request::mark_scheduled(std::int32_t max_tokens) {
  const std::lock_guard lock(mutex_);
  if (timings_.queued_seconds >= 0) return;
  timings_.queued_seconds = since_submit();
  tokens_.reserve(static_cast<std::size_t>(max_tokens));  // so that decoding never allocates
}

void Request::finish(FinishReason reason, std::string_view error) {
  NewsBatch news;
  {
    const std::lock_guard lock(mutex_);
    if (finished()) return;
    timings_.total_seconds = since_submit();
    error_ = error;
    finish_reason_ = reason;
    tell_watchers(news);
  }
  wake();
  news.send();
}

}  // namespace paged

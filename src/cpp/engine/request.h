// SPDX-License-Identifier: Apache-2.0
// One request, seen from both sides: what was asked, and the outbox between the engine thread, which appends, and the
// application's threads, which wait and take. A request keeps its whole answer, at most max_tokens tokens and their
// text, and a mark up to which it was taken: a slow or absent consumer costs no more than that and holds nobody up.
// Where no stop string asks for it, the text of tokens is made by whoever takes it: the engine thread only appends.
#pragma once

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/condition.h"
#include "base/prefetch.h"
#include "core/types.h"
#include "engine/news_queue.h"
#include "engine/text_stream.h"
#include "engine/token_table.h"
#include "ops/logits_ops.h"

namespace paged {

// What a log-probability is of: the model's logits, or those a token is sampled from; or these logits themselves.
enum class LogprobsMode : std::uint8_t { kRawLogprobs, kProcessedLogprobs, kRawLogits, kProcessedLogits };

// How a request wants its tokens chosen and when it ends. Names and meanings are vLLM's. Checked by Engine::submit.
struct SamplingParams {
  float temperature = 1.0f;
  float top_p = 1.0f;
  std::int32_t top_k = 0;  // 0 or -1: all
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::vector<std::pair<TokenId, float>> logit_bias;  // each id once
  std::vector<TokenId> allowed_token_ids;             // empty: all
  std::vector<std::vector<TokenId>> bad_words;        // as the tokens each may be made of
  std::uint64_t seed = 0;
  std::int32_t max_tokens = 16;
  std::int32_t min_tokens = 0;
  std::int32_t num_logprobs = -1;         // of the most likely tokens, besides the chosen one; -1: none at all
  std::int32_t num_prompt_logprobs = -1;  // the same at each token of the prompt,
  std::int32_t first_prompt_logprob = 1;  // from this one on; the first token has none
  LogprobsMode logprobs_mode = LogprobsMode::kRawLogprobs;
  std::vector<TokenId> stop_token_ids;      // including the model's end-of-sequence tokens unless they are ignored
  std::vector<std::string> stop;            // UTF-8 bytes
  bool include_stop_str_in_output = false;  // also the text of a stop token
  bool skip_special_tokens = true;          // in the text
};

// Who chooses a request's tokens with the engine: see guide_desk.h.
enum class GuideKind : std::uint8_t {
  kNone,
  kMask,   // before each token somebody says which ones are allowed
  kToken,  // somebody gets each token's logits and makes the token of them
};

// The engine was closed, or is used in a process forked from the one that made it.
class EngineClosedError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct RequestSpec {
  std::vector<TokenId> prompt;
  SamplingParams sampling;
  std::int32_t priority = 0;  // lower is more urgent
  std::string cache_salt;
  GuideKind guide = GuideKind::kNone;
  std::uint64_t guide_key = 0;  // under which the questions come
  // A request of the same prompt: this one waits until that one has its first token, or has ended, and then finds the
  // prompt in the prefix cache. 0: none.
  SequenceId follows = 0;
  SessionId session = 0;     // whose turn it is: the prompt is what it appends. 0: of none
  bool keeps_answer = true;  // the turn's; false: only the prompt is appended to the session
};

// A piece of an answer.
struct Delta {
  std::vector<TokenId> token_ids;
  std::string text;
  FinishReason finish_reason = FinishReason::kNone;
  std::vector<ScoredToken> scores;  // 1 + num_logprobs of each token, its own first; empty unless asked for
};

// Seconds since submit; negative while it has not happened.
struct RequestTimings {
  double queued_seconds = -1.0;  // until it was scheduled for the first time
  double first_token_seconds = -1.0;
  double total_seconds = -1.0;
};

struct NewToken {
  TokenId id = 0;
  bool is_stop_token = false;           // the answer ends with it
  std::span<const ScoredToken> scores;  // its own, if they are asked for
  std::chrono::steady_clock::time_point time;
};

class alignas(64) Request {
 public:
  using Clock = std::chrono::steady_clock;

  // Without a table there is no text.
  Request(SequenceId id, RequestSpec spec, std::shared_ptr<const TokenTable> token_table);

  SequenceId id() const { return id_; }
  const RequestSpec& spec() const { return spec_; }

  // Consumer side, any thread. It is *ready* when there is something to take or it has finished; with `until_finished`,
  // only then. All but finished() throw EngineClosedError in a forked process, where nothing more can come.
  bool ready(bool until_finished) const;
  bool wait_for(std::chrono::milliseconds timeout);           // true: it is ready
  bool wait_finished_for(std::chrono::milliseconds timeout);  // true: it has finished
  // Once, as soon as it is ready: pushes the id to the queue.
  void notify(std::shared_ptr<NewsQueue> queue, bool until_finished);
  Delta take();    // what has come since the last take
  Delta answer();  // all that has come
  // Of the prompt's tokens so far: 1 + num_prompt_logprobs entries each, the token's own first.
  std::vector<ScoredToken> prompt_scores() const;
  bool finished() const { return finish_reason_.load() != FinishReason::kNone; }
  std::string error() const;  // empty unless finish_reason is kError
  RequestTimings timings() const;
  std::int32_t num_tokens() const;           // generated so far
  std::vector<float> token_seconds() const;  // when each token came, since submit
  std::int32_t num_cached_tokens() const;

  // Engine side. wake() is to be called for whoever waits once nothing more is to be done at once.
  struct Appended {
    bool stopped = false;     // a stop string is complete
    bool has_waiter = false;  // a thread
  };
  Appended append(const NewToken& token, NewsBatch& news);
  // That append() comes soon: first what it reads, then, once that is there, where it writes.
  PAGED_PREFETCH void prefetch() const { prefetch_to_write(this, kHotBytes); }
  PAGED_PREFETCH void prefetch_end() const { prefetch_to_write(tokens_.data() + tokens_.size(), 1); }
  void wake() { changed_->notify_all(); }
  void append_prompt_scores(std::span<const ScoredToken> scores);
  void set_num_cached_tokens(std::int32_t count);
  // The first time counts. max_tokens: that may come.
  void mark_scheduled(std::int32_t max_tokens);
  Clock::time_point submitted() const { return submitted_; }
  void finish(FinishReason reason, std::string_view error = {});

 private:
  struct Watcher {
    std::shared_ptr<NewsQueue> queue;
    bool until_finished;
  };
  struct Token {
    TokenId id;
    float seconds;  // since submit
  };

  // Of a forked child: locks may be held for ever there, so it comes first.
  void check_process() const;
  bool is_ready(bool until_finished) const;
  bool decode();
  Delta answer_from(std::size_t token, std::size_t text);
  void tell_watchers(NewsBatch& news);
  double since_submit(Clock::time_point now = Clock::now()) const {
    return std::chrono::duration<double>(now - submitted_).count();
  }

  // What each token touches stands together: between two steps all of it may leave the caches.
  static constexpr std::size_t kHotBytes = 128;
  mutable std::mutex mutex_;
  std::vector<Token> tokens_;
  const Clock::time_point submitted_ = Clock::now();
  std::vector<Watcher> watchers_;
  std::int32_t num_waiters_ = 0;  // threads that want every delta; others wake only at the end
  std::atomic<FinishReason> finish_reason_{FinishReason::kNone};  // written under the lock
  bool ends_with_stop_token_ = false;
  const bool decodes_at_once_;       // for stop strings
  std::vector<ScoredToken> scores_;  // of tokens_

  const SequenceId id_;
  const RequestSpec spec_;
  const pid_t pid_ = getpid();
  const std::shared_ptr<const TokenTable> token_table_;
  TextStream stream_;
  std::size_t num_decoded_ = 0;  // of tokens_: their text is in stream_ and text_
  std::string text_;
  std::size_t num_taken_tokens_ = 0;
  std::size_t num_taken_text_ = 0;  // bytes
  std::vector<ScoredToken> prompt_scores_;
  std::string error_;
  RequestTimings timings_;
  std::int32_t num_cached_tokens_ = 0;
  Condition changed_;
};

}  // namespace paged

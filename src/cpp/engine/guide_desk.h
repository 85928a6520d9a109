// SPDX-License-Identifier: Apache-2.0
// Where the engine thread leaves questions about guided requests, and threads outside of the engine answer them: which
// tokens may come next, or which token it is. Whoever is asked about stands still in the scheduler until the answer
// comes; the engine thread never waits here. A question is announced by one byte in a pipe, so that a thread of any
// language waits for one with a plain read, and all of them see the end of the file when the engine closes.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "core/types.h"
#include "engine/logits_policy.h"
#include "exec/host_sampler.h"

namespace paged {

// Logits of which the host makes a token, with how it is to be done.
struct HostSample {
  std::vector<float> logits;             // [vocab_size] as the model gave them
  std::vector<ScoredToken> scores = {};  // of the token made of them
  SamplingRow sampling;
  StepExtrasBuffer extras;  // the edits, of row 0
};

struct GuideQuestion {
  SequenceId id = 0;
  std::uint64_t key = 0;               // RequestSpec::guide_key
  std::vector<TokenId> tokens;         // generated since the last question
  std::unique_ptr<HostSample> sample;  // where the answer is a token
  bool ended = false;                  // the last there is about this request, and no answer is expected
};

struct GuideAnswer {
  enum class Kind : std::uint8_t { kMask, kAnything, kToken, kStop, kError };
  SequenceId id = 0;
  Kind kind = Kind::kAnything;
  std::vector<std::uint32_t> mask = {};  // [mask_words(vocab_size)]
  TokenId token = 0;
  std::vector<ScoredToken> scores = {};  // of the token
  std::string error = {};
};

class GuideDesk {
 public:
  using Deliver = std::function<void(GuideAnswer)>;

  // `deliver` hands an answer to the engine thread; it is not called after close().
  GuideDesk(std::int32_t vocab_size, Deliver deliver);
  ~GuideDesk();
  GuideDesk(const GuideDesk&) = delete;
  GuideDesk& operator=(const GuideDesk&) = delete;

  std::int32_t vocab_size() const { return vocab_size_; }

  // The engine's side.
  void ask(GuideQuestion question);
  void close();  // questions not yet taken are dropped, answers that still come are ignored

  // Everybody else's. The end of the pipe to read: one byte for each question; the desk's own, valid as long as it is.
  int read_end() const { return pipe_[0]; }
  std::optional<GuideQuestion> next();  // nothing if another thread has taken it
  // Throws std::invalid_argument for a mask of another size.
  void answer(GuideAnswer answer);
  // Samples from `processed` [vocab_size], which it edits first, as the engine's own sampler would. Sets from.scores.
  TokenId sample(HostSample& from, std::span<float> processed);

 private:
  void announce();  // under mutex_

  const std::int32_t vocab_size_;
  int pipe_[2] = {-1, -1};
  std::mutex mutex_;  // guards what follows
  Deliver deliver_;   // empty once closed
  std::deque<GuideQuestion> questions_;
  std::size_t num_announced_ = 0;  // bytes in the pipe, or read by who is about to call next()
  std::mutex sampler_mutex_;
  std::unique_ptr<HostSampler> sampler_;
};

}  // namespace paged

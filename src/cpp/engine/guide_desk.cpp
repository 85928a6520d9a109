// SPDX-License-Identifier: Apache-2.0
#include "engine/guide_desk.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "base/check.h"

namespace paged {

GuideDesk::GuideDesk(std::int32_t vocab_size, Deliver deliver) : vocab_size_(vocab_size), deliver_(std::move(deliver)) {
  if (pipe(pipe_) != 0) throw std::system_error(errno, std::generic_category(), "pipe of the guides");
  for (const int end : pipe_) fcntl(end, F_SETFD, FD_CLOEXEC);
  fcntl(pipe_[1], F_SETFL, O_NONBLOCK);
}

// Without the mutex: nobody else is left, and in a forked process somebody may seem to hold it for ever.
GuideDesk::~GuideDesk() {
  for (const int end : pipe_)
    if (end >= 0) ::close(end);
}

void GuideDesk::ask(GuideQuestion question) {
  const std::lock_guard lock(mutex_);
  if (!deliver_) return;
  questions_.push_back(std::move(question));
  announce();
}

// A full pipe is no loss: what could not be announced now is when the next question is taken.
void GuideDesk::announce() {
  while (num_announced_ < questions_.size() && write(pipe_[1], "", 1) == 1) ++num_announced_;
}

void GuideDesk::close() {
  const std::lock_guard lock(mutex_);
  deliver_ = nullptr;
  questions_.clear();
  if (pipe_[1] >= 0) ::close(std::exchange(pipe_[1], -1));
}

std::optional<GuideQuestion> GuideDesk::next() {
  const std::lock_guard lock(mutex_);
  if (num_announced_ > 0) --num_announced_;
  if (questions_.empty()) return std::nullopt;
  GuideQuestion question = std::move(questions_.front());
  questions_.pop_front();
  announce();
  return question;
}

void GuideDesk::answer(GuideAnswer answer) {
  if (answer.kind == GuideAnswer::Kind::kMask)
    PAGED_CHECK(std::cmp_equal(answer.mask.size(), mask_words(vocab_size_)), "a mask for a vocabulary of ", vocab_size_,
                " has ", mask_words(vocab_size_), " words of 32 bits, got ", answer.mask.size());
  if (answer.kind == GuideAnswer::Kind::kToken)  // -1: none was left, as sample() says
    PAGED_CHECK(answer.token >= -1 && answer.token < vocab_size_, "a token of a vocabulary of ", vocab_size_, ", got ",
                answer.token);
  const std::lock_guard lock(mutex_);
  if (deliver_) deliver_(std::move(answer));
}

TokenId GuideDesk::sample(HostSample& from, std::span<float> processed) {
  PAGED_CHECK(std::cmp_equal(processed.size(), vocab_size_), "a vocabulary of ", vocab_size_,
              " needs as many logits, got ", processed.size());
  const std::lock_guard lock(sampler_mutex_);
  if (sampler_ == nullptr) sampler_ = std::make_unique<HostSampler>(std::make_shared<ThreadPool>(1), vocab_size_);
  const StepExtras extras = from.extras.view();
  sampler_->sample(processed.data(), {&from.sampling, 1}, &extras, from.logits.data());
  const std::span<const ScoredToken> scores = sampler_->extra_outputs().scores;
  from.scores.assign(scores.begin(), scores.end());
  return sampler_->token_ids()[0];
}

}  // namespace paged

// SPDX-License-Identifier: Apache-2.0
#include "engine/policy_desk.h"

#include <chrono>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "core/named_policy.h"

namespace paged {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

PolicyDesk::PolicyDesk(const std::string& fallback, double patience)
    : patience_(patience),
      policy_(std::make_shared<ProposedPolicy>(named_policy(fallback, 60.0), patience,
                                               [this](PolicyQuestion question) { ask(std::move(question)); })) {
  PAGED_CHECK(patience > 0.0 && std::isfinite(patience), "patience is a number of seconds above 0, got ", patience);
}

void PolicyDesk::open(Deliver deliver) {
  const std::lock_guard lock(mutex_);
  PAGED_CHECK(!deliver_ && !closed_, "this policy belongs to an engine already");
  deliver_ = std::move(deliver);
}

void PolicyDesk::close() {
  {
    const std::lock_guard lock(mutex_);
    deliver_ = nullptr;
    closed_ = true;
    questions_.clear();
  }
  changed_->notify_all();
}

void PolicyDesk::ask(PolicyQuestion question) {
  question.asked_at = now();
  {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    if (const auto found = wanted_.find(question.view.id); !question.event && found != wanted_.end()) {
      questions_[found->second] = std::move(question);
      return;  // announced already
    }
    if (questions_.size() >= kMaxQuestions) {
      ++num_late_;
      return;
    }
    if (!question.event) wanted_.emplace(question.view.id, questions_.size());
    questions_.push_back(std::move(question));
  }
  changed_->notify_one();
}

std::vector<PolicyQuestion> PolicyDesk::wait() {
  std::unique_lock lock(mutex_);
  changed_->wait(lock, [&] { return closed_ || !questions_.empty(); });
  wanted_.clear();
  return std::exchange(questions_, {});
}

void PolicyDesk::propose(Proposal proposal, double asked_at) {
  const std::lock_guard lock(mutex_);
  if (now() - asked_at > patience_)
    ++num_late_;
  else if (deliver_)
    deliver_(std::move(proposal));
}

void PolicyDesk::count_failed() {
  const std::lock_guard lock(mutex_);
  ++num_failed_;
}

std::int64_t PolicyDesk::num_late() const {
  const std::lock_guard lock(mutex_);
  return num_late_;
}

std::int64_t PolicyDesk::num_failed() const {
  const std::lock_guard lock(mutex_);
  return num_failed_;
}

}  // namespace paged

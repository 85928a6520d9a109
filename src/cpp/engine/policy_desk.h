// SPDX-License-Identifier: Apache-2.0
// Where the engine thread leaves questions for a policy that runs elsewhere, and that thread leaves its proposals. The
// engine thread never waits here; of each session only the newest question is kept.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/condition.h"
#include "core/proposed_policy.h"

namespace paged {

class PolicyDesk {
 public:
  using Deliver = std::function<void(Proposal)>;

  // `fallback`: see named_policy().
  PolicyDesk(const std::string& fallback, double patience);
  PolicyDesk(const PolicyDesk&) = delete;
  PolicyDesk& operator=(const PolicyDesk&) = delete;

  // The engine's side. `deliver` hands a proposal to the engine thread; it is not called after close(). One engine.
  void open(Deliver deliver);
  void close();
  const std::shared_ptr<ProposedPolicy>& policy() const { return policy_; }

  // The policy's. Blocks until there are questions, oldest first; none: the engine is closed.
  std::vector<PolicyQuestion> wait();
  // An answer to what was asked at that time. One that comes later than patience allows is dropped, and counted.
  void propose(Proposal proposal, double asked_at);
  void count_failed();

  std::int64_t num_late() const;    // proposals, and questions that nobody took for too long
  std::int64_t num_failed() const;  // questions that ended in an error

 private:
  static constexpr std::size_t kMaxQuestions = 1 << 15;  // more of them are late
  void ask(PolicyQuestion question);

  const double patience_;
  const std::shared_ptr<ProposedPolicy> policy_;
  mutable std::mutex mutex_;  // guards what follows
  Condition changed_;
  Deliver deliver_;
  bool closed_ = false;
  std::vector<PolicyQuestion> questions_;
  std::unordered_map<SessionId, std::size_t> wanted_;  // the question that wants a proposal
  std::int64_t num_late_ = 0;
  std::int64_t num_failed_ = 0;
};

}  // namespace paged

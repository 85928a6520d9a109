// SPDX-License-Identifier: Apache-2.0
// A policy that asks somebody else, who answers some time or never. A question is a copy of what is known of a session;
// a proposal counts as long as the session is in the state that the question was about, until its time is over. Where
// there is no proposal that counts, the fallback decides; it is told everything, so that it has learnt what it can.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>

#include "core/policy.h"

namespace paged {

struct PolicyQuestion {
  std::optional<SessionEvent> event = std::nullopt;  // this has happened; else a proposal is wanted
  SessionView view;
  Pressure pressure;
  double asked_at = 0.0;  // seconds, on a clock of whoever hands it on
};

// What is left out is the fallback's to decide.
struct Proposal {
  SessionId id = 0;
  std::int64_t revision = 0;  // of the session, as in the question
  double since = 0.0;         // likewise
  std::optional<Score> score = std::nullopt;
  std::optional<Tier> tier = std::nullopt;
  std::optional<bool> admits = std::nullopt;
};

class ProposedPolicy : public Policy {
 public:
  using Ask = std::function<void(PolicyQuestion)>;

  // `patience`: seconds that a proposal goes on to count while the next one is awaited.
  ProposedPolicy(std::shared_ptr<Policy> fallback, double patience, Ask ask);

  // False, and it does not count: the session has changed since.
  bool accept(const Proposal& proposal, const SessionView& now);

  Score score(const SessionView& session, const Pressure& pressure) const override;
  double score_by_age(double seconds, const Pressure& pressure) const override {
    return fallback_->score_by_age(seconds, pressure);
  }
  Tier place(const SessionView& session, const Pressure& pressure) const override;
  bool keeps_by_age(Tier tier, double seconds, const Pressure& pressure) const override {
    return fallback_->keeps_by_age(tier, seconds, pressure);
  }
  bool admit(const SessionView& session, const Pressure& pressure) const override;
  bool orders_by_session() const override { return fallback_->orders_by_session(); }
  bool forgets_superseded() const override { return fallback_->forgets_superseded(); }
  void on_event(SessionEvent event, const SessionView& session) override;

 private:
  struct Entry {
    std::int64_t asked_revision = -1;
    double asked_since = 0.0;
    std::optional<Proposal> proposal = std::nullopt;
  };
  const Proposal* proposal_for(const SessionView& session) const;
  double ends(const Proposal& proposal) const;  // on the session's clock `since`

  std::shared_ptr<Policy> fallback_;
  double patience_;
  Ask ask_;
  mutable std::unordered_map<SessionId, Entry> entries_;  // asking changes nothing of what is decided
};

}  // namespace paged

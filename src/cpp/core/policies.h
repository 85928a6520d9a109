// SPDX-License-Identifier: Apache-2.0
// The simple policies. All but LRU know sessions; none of them learns.
#pragma once

#include "core/policy.h"

namespace paged {

// Least recently used, whatever sessions say.
class LruPolicy : public Policy {
 public:
  Score score(const SessionView&, const Pressure&) const override { return {}; }
  double score_by_age(double, const Pressure&) const override { return 0.0; }
  Tier place(const SessionView&, const Pressure&) const override { return Tier::kDevice; }
  bool admit(const SessionView&, const Pressure&) const override { return true; }
  bool orders_by_session() const override { return false; }
  bool forgets_superseded() const override { return false; }
  void on_event(SessionEvent, const SessionView&) override {}
};

// A session keeps its blocks for a fixed time after each turn, then they go by age.
class TtlPolicy : public LruPolicy {
 public:
  explicit TtlPolicy(double seconds) : seconds_(seconds) {}
  Score score(const SessionView& session, const Pressure&) const override {
    const bool away = session.state == SessionState::kIdle || session.state == SessionState::kPaused;
    if (away && session.since >= seconds_) return {};
    return {false, 1.0, true, away ? seconds_ - session.since : std::numeric_limits<double>::infinity()};
  }
  bool forgets_superseded() const override { return true; }

 private:
  double seconds_;
};

// The sessions of more weight keep their blocks, whoever is away for how long.
class PriorityPolicy : public LruPolicy {
 public:
  Score score(const SessionView& session, const Pressure&) const override { return {false, session.weight}; }
  bool forgets_superseded() const override { return true; }
};

}  // namespace paged

// SPDX-License-Identifier: Apache-2.0
// The default policy. A session that is away keeps its blocks while the rate at which it comes back, times what
// computing them again would cost, exceeds their rent. For a second the whole pool costs a tenth of a second of
// computing, about the most that a block was ever worth in the dual of the linear program that bounds all schedules
// (bench/agent_limits.py); a whole one holds too little. As rates of return fall with time, this is a time to live that
// nobody has to choose: short for a session of few tokens or a tool that is quick or late, long for one whose tool
// returns soon or that is expensive to compute again.
//
// How long waits take is learnt for each tool. What the application expects is believed as far as it came true: the
// ratio of truth and guess is learnt like a wait, so guesses that are wrong by a factor are corrected; and of the two,
// guess and tool, the one is used that has foretold waits better lately. Quantiles are a distribution of their own, of
// which the ratio corrects the scale.
#pragma once

#include <optional>
#include <string>
#include <unordered_map>

#include "core/policy.h"
#include "core/wait_histogram.h"

namespace paged {

class HazardPolicy : public Policy {
 public:
  Score score(const SessionView& session, const Pressure& pressure) const override;
  double score_by_age(double seconds, const Pressure& pressure) const override;
  Tier place(const SessionView& session, const Pressure& pressure) const override;
  bool keeps_by_age(Tier tier, double seconds, const Pressure& pressure) const override;
  bool admit(const SessionView& session, const Pressure& pressure) const override;
  bool orders_by_session() const override { return true; }
  bool forgets_superseded() const override { return true; }
  void on_event(SessionEvent event, const SessionView& session) override;

 private:
  struct Outlook {
    const WaitHistogram& waits() const { return announced ? *announced : *learnt; }
    double share_of(double seconds) const { return waits().share_of(seconds / scale); }

    const WaitHistogram* learnt;
    double scale;
    std::optional<WaitHistogram> announced = std::nullopt;
  };
  Outlook outlook(const SessionView& session) const;
  Outlook announced(const Expectation& expectation) const;
  const WaitHistogram& waits_for(const std::string& tool) const;
  void learn(const SessionView& session, bool came_back);

  struct Tool {
    WaitHistogram seen;
    WaitHistogram believed;  // with what all tools tell, as long as little was seen
  };
  static constexpr std::size_t kMaxTools = 1024;

  std::unordered_map<std::string, Tool> tools_;
  Tool all_ = believed_at_first();
  Tool guesses_ = guesses_at_first();  // truth / guess
  double guess_advantage_ = 1.0;       // how much better guesses foretell than tools, in nats, lately

  static Tool believed_at_first();
  static Tool guesses_at_first();
};

// Knows the truth: what the application expects is what will happen. For replays only.
class ClairvoyantPolicy : public HazardPolicy {
 public:
  Score score(const SessionView& session, const Pressure& pressure) const override;
};

double guess_of(const Expectation& expectation);  // seconds: its median; negative if there is none

}  // namespace paged

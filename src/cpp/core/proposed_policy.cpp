// SPDX-License-Identifier: Apache-2.0
#include "core/proposed_policy.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace paged {

ProposedPolicy::ProposedPolicy(std::shared_ptr<Policy> fallback, double patience, Ask ask)
    : fallback_(std::move(fallback)), patience_(patience), ask_(std::move(ask)) {}

bool ProposedPolicy::accept(const Proposal& proposal, const SessionView& now) {
  const auto entry = entries_.find(proposal.id);
  if (entry == entries_.end() || proposal.revision != now.revision) return false;
  entry->second.proposal = proposal;
  return true;
}

double ProposedPolicy::ends(const Proposal& proposal) const {
  return proposal.since + (proposal.score ? proposal.score->valid_for : std::numeric_limits<double>::infinity());
}

const Proposal* ProposedPolicy::proposal_for(const SessionView& session) const {
  const auto entry = entries_.find(session.id);
  if (entry == entries_.end() || !entry->second.proposal) return nullptr;
  const Proposal& proposal = *entry->second.proposal;
  const bool counts = proposal.revision == session.revision && session.since <= ends(proposal) + patience_;
  return counts ? &proposal : nullptr;
}

Score ProposedPolicy::score(const SessionView& session, const Pressure& pressure) const {
  Entry& entry = entries_[session.id];
  const Proposal* proposal = proposal_for(session);
  const bool has_run_out = proposal != nullptr && session.since >= ends(*proposal);
  if (entry.asked_revision != session.revision || (has_run_out && entry.asked_since < ends(*proposal))) {
    entry.asked_revision = session.revision;
    entry.asked_since = session.since;
    ask_({std::nullopt, session, pressure});
  }
  if (proposal == nullptr || !proposal->score) return fallback_->score(session, pressure);
  Score score = *proposal->score;
  score.valid_for = (has_run_out ? ends(*proposal) + patience_ : ends(*proposal)) - session.since;
  return score;
}

Tier ProposedPolicy::place(const SessionView& session, const Pressure& pressure) const {
  const Proposal* proposal = proposal_for(session);
  return proposal != nullptr && proposal->tier ? *proposal->tier : fallback_->place(session, pressure);
}

bool ProposedPolicy::admit(const SessionView& session, const Pressure& pressure) const {
  const Proposal* proposal = proposal_for(session);
  return proposal != nullptr && proposal->admits ? *proposal->admits : fallback_->admit(session, pressure);
}

void ProposedPolicy::on_event(SessionEvent event, const SessionView& session) {
  fallback_->on_event(event, session);
  if (event == SessionEvent::kClosed) entries_.erase(session.id);
  ask_({event, session, {}});
}

}  // namespace paged

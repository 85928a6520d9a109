// SPDX-License-Identifier: Apache-2.0
// Policies that show what each part of the default one brings: the least recently used goes first, as ever, but who
// waits is another's. For replays only.
#pragma once

#include "core/hazard_policy.h"
#include "core/policies.h"

namespace paged {

// Turns queue as under the hazard policy.
class SessionOrderPolicy : public LruPolicy {
 public:
  bool orders_by_session() const override { return true; }
};

// And are admitted as there, but every session that lives keeps others from its blocks.
class AdmissionPolicy : public SessionOrderPolicy {
 public:
  Score score(const SessionView& session, const Pressure&) const override {
    return {.hold = session.state != SessionState::kWaitsForRoom};
  }
  bool admit(const SessionView& session, const Pressure& pressure) const override {
    return hazard_.admit(session, pressure);
  }

 private:
  HazardPolicy hazard_;
};

}  // namespace paged

// SPDX-License-Identifier: Apache-2.0
// The sequences that wait, most urgent first, and the rule of urgency.
//
// Promoted sequences come first, in order of arrival; then the others by priority, deadline and arrival. A preempted
// sequence keeps its arrival and so returns to the front of its class. A sequence is promoted, for good, once it has
// spent max_wait_steps steps in this queue (over all its waits): from then on only sequences that arrived earlier can
// be served before it, whatever keeps arriving.
//
// Borrows the sequences. push, pop and remove are O(log n); promote_due is O(log n) for each sequence promoted.
#pragma once

#include <cstdint>
#include <set>

#include "core/sequence.h"

namespace paged {

bool is_more_urgent(const Sequence& a, const Sequence& b);

class WaitingQueue {
 public:
  void push(Sequence& sequence, std::int64_t step);
  // Takes it out, wherever it stands.
  void remove(Sequence& sequence, std::int64_t step);
  // To be called at the start of each step.
  void promote_due(std::int64_t step);

  Sequence& front() const { return **by_urgency_.begin(); }
  Sequence& earliest_deadline() const { return **by_deadline_.begin(); }
  bool empty() const { return by_urgency_.empty(); }
  std::int32_t size() const { return static_cast<std::int32_t>(by_urgency_.size()); }

  // Throws InternalError unless each sequence waits, holds nothing, and is indexed as it should be.
  void check_integrity() const;

 private:
  struct MoreUrgent {
    bool operator()(const Sequence* a, const Sequence* b) const { return is_more_urgent(*a, *b); }
  };
  struct EarlierPromotion {
    bool operator()(const Sequence* a, const Sequence* b) const {
      return a->promotion_step != b->promotion_step ? a->promotion_step < b->promotion_step : a->arrival < b->arrival;
    }
  };

  struct EarlierDeadline {
    bool operator()(const Sequence* a, const Sequence* b) const {
      return a->deadline != b->deadline ? a->deadline < b->deadline : a->arrival < b->arrival;
    }
  };

  std::set<Sequence*, MoreUrgent> by_urgency_;
  std::set<Sequence*, EarlierDeadline> by_deadline_;
  std::set<Sequence*, EarlierPromotion> unpromoted_;
};

}  // namespace paged

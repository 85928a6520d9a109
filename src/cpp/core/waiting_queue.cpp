// SPDX-License-Identifier: Apache-2.0
#include "core/waiting_queue.h"

#include "base/check.h"

namespace paged {

bool is_more_urgent(const Sequence& a, const Sequence& b) {
  if (a.promoted != b.promoted) return a.promoted;
  if (!a.promoted && a.priority != b.priority) return a.priority < b.priority;
  if (!a.promoted && a.deadline != b.deadline) return a.deadline < b.deadline;
  return a.arrival < b.arrival;
}

void WaitingQueue::push(Sequence& sequence, std::int64_t step) {
  sequence.status = SequenceStatus::kWaiting;
  by_urgency_.insert(&sequence);
  by_deadline_.insert(&sequence);
  if (sequence.promoted) return;
  sequence.promotion_step = step + sequence.wait_left;
  unpromoted_.insert(&sequence);
}

void WaitingQueue::remove(Sequence& sequence, std::int64_t step) {
  by_urgency_.erase(&sequence);
  by_deadline_.erase(&sequence);
  if (sequence.promoted) return;
  unpromoted_.erase(&sequence);
  sequence.wait_left = sequence.promotion_step - step;
}

void WaitingQueue::promote_due(std::int64_t step) {
  while (!unpromoted_.empty() && (*unpromoted_.begin())->promotion_step < step) {
    Sequence* sequence = *unpromoted_.begin();
    unpromoted_.erase(unpromoted_.begin());
    by_urgency_.erase(sequence);  // its key is about to change
    sequence->promoted = true;
    by_urgency_.insert(sequence);
  }
}

void WaitingQueue::check_integrity() const {
  std::size_t num_unpromoted = 0;
  PAGED_INVARIANT(by_deadline_.size() == by_urgency_.size(), "sequences by deadline: ", by_deadline_.size());
  for (Sequence* sequence : by_urgency_) {
    PAGED_INVARIANT(sequence->status == SequenceStatus::kWaiting, "sequence ", sequence->id,
                    " queues but does not wait");
    PAGED_INVARIANT(sequence->block_table.empty() && sequence->row < 0 && sequence->num_computed_tokens == 0,
                    "sequence ", sequence->id, " waits but holds blocks or a row");
    PAGED_INVARIANT(unpromoted_.contains(sequence) != sequence->promoted, "sequence ", sequence->id,
                    " is promoted or not in disagreement with the queue");
    if (!sequence->promoted) ++num_unpromoted;
  }
  PAGED_INVARIANT(num_unpromoted == unpromoted_.size(), "unpromoted sequences: ", num_unpromoted, " counted, ",
                  unpromoted_.size(), " kept");
}

}  // namespace paged

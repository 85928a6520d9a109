// SPDX-License-Identifier: Apache-2.0
// Scheduler::check_integrity: what must hold whenever no call is under way and the last plan's batch is built.
#include <algorithm>

#include "base/check.h"
#include "core/scheduler.h"

namespace paged {

void Scheduler::check_integrity() const {
  blocks_.check_integrity();
  waiting_.check_integrity();
  waiting_for_room_.check_integrity();
  sessions_.check_integrity();
  check_sequences();
  check_references();
}

void Scheduler::check_sequences() const {
  const auto num_holders = static_cast<std::size_t>(
      std::count_if(rows_.begin(), rows_.end(), [](const Sequence* sequence) { return sequence != nullptr; }));
  PAGED_INVARIANT(num_holders + static_cast<std::size_t>(num_waiting()) == sequences_.size(),
                  "sequences: ", num_holders, " hold rows and ", num_waiting(), " wait of ", sequences_.size());
  PAGED_INVARIANT(num_holders + free_rows_.size() == rows_.size(), "rows: ", num_holders, " used and ",
                  free_rows_.size(), " free of ", rows_.size());
  PAGED_INVARIANT(std::is_sorted(running_.begin(), running_.end(),
                                 [](const Sequence* a, const Sequence* b) { return is_more_urgent(*a, *b); }),
                  "the running sequences are out of order");
  for (const Sequence* sequence : running_) {
    PAGED_INVARIANT(
        sequence->status == SequenceStatus::kRunning && rows_[static_cast<std::size_t>(sequence->row)] == sequence,
        "sequence ", sequence->id, " runs but does not hold row ", sequence->row);
    const std::int32_t num_missing =
        sequence->num_tokens() + sequence->num_pending_tokens - sequence->num_planned_tokens();
    const std::int32_t least = sequence->awaits_token ? 0 : 1;
    PAGED_INVARIANT(sequence->num_pending_tokens > 0 ? num_missing == 1 : num_missing >= least, "sequence ",
                    sequence->id, " has ", num_missing, " tokens to schedule and ", sequence->num_pending_tokens,
                    " pending");
    PAGED_INVARIANT(sequence->asks || !sequence->held, "sequence ", sequence->id, " is held but does not ask");
    PAGED_INVARIANT(sequence->held || !sequence->awaits_token, "sequence ", sequence->id, " awaits a token, not held");
  }
  for (const Sequence* sequence : rows_) {
    if (sequence == nullptr) continue;
    blocks_.check_integrity(*sequence);
    Sequence expected;  // its counts of what is in flight
    for (std::int32_t i = 0; i < num_steps_in_flight_; ++i)
      for (const ScheduledSequence& scheduled : plan_in_flight(i).sequences) {
        if (scheduled.row != sequence->row) continue;
        ++expected.num_steps_in_flight;
        expected.num_scheduled_tokens += scheduled.num_scheduled_tokens;
        expected.num_pending_tokens += scheduled.samples ? 1 : 0;
      }
    PAGED_INVARIANT(sequence->num_steps_in_flight == expected.num_steps_in_flight &&
                        sequence->num_scheduled_tokens == expected.num_scheduled_tokens &&
                        sequence->num_pending_tokens == expected.num_pending_tokens,
                    "the counts of sequence ", sequence->id, " are not those of the plans in flight");
    PAGED_INVARIANT(sequence->status == SequenceStatus::kRunning || sequence->num_steps_in_flight > 0, "sequence ",
                    sequence->id, " has ended but holds row ", sequence->row);
  }
}

void Scheduler::check_references() const {
  std::vector<std::int32_t> references(static_cast<std::size_t>(config_.num_blocks));
  const auto count = [&](const std::vector<BlockId>& blocks) {
    for (const BlockId block : blocks) ++references[static_cast<std::size_t>(block)];
  };
  for (const Sequence* sequence : rows_)
    if (sequence != nullptr) count(sequence->block_table);
  for (std::int32_t i = 0; i < num_steps_in_flight_; ++i) {
    count(plan_in_flight(i).block_copies.sources);
    count(plan_in_flight(i).retired_blocks);
  }
  blocks_.count_transfer_references(references);
  for (BlockId block = 0; block < config_.num_blocks; ++block)
    PAGED_INVARIANT(references[static_cast<std::size_t>(block)] == blocks_.num_references(block), "block ", block,
                    " has ", references[static_cast<std::size_t>(block)], " owners but ", blocks_.num_references(block),
                    " references");
}

}  // namespace paged

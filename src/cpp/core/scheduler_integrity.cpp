// SPDX-License-Identifier: Apache-2.0
// Scheduler::check_integrity: what must hold whenever no call is under way.
#include <algorithm>

#include "base/check.h"
#include "core/scheduler.h"

namespace paged {

void Scheduler::check_integrity() const {
  blocks_.check_integrity();
  waiting_.check_integrity();
  PAGED_INVARIANT(running_.size() + static_cast<std::size_t>(waiting_.size()) == sequences_.size(),
                  "sequences: ", running_.size(), " running and ", waiting_.size(), " waiting of ", sequences_.size());
  PAGED_INVARIANT(running_.size() + free_rows_.size() == rows_.size(), "rows: ", running_.size(), " used and ",
                  free_rows_.size(), " free of ", rows_.size());
  PAGED_INVARIANT(std::is_sorted(running_.begin(), running_.end(),
                                 [](const Sequence* a, const Sequence* b) { return is_more_urgent(*a, *b); }),
                  "the running sequences are out of order");

  std::vector<std::int32_t> references(static_cast<std::size_t>(config_.num_blocks));
  for (const Sequence* sequence : running_) {
    PAGED_INVARIANT(sequence->status != SequenceStatus::kWaiting, "sequence ", sequence->id, " runs but waits");
    PAGED_INVARIANT(rows_[static_cast<std::size_t>(sequence->row)] == sequence, "row ", sequence->row,
                    " is not of sequence ", sequence->id);
    PAGED_INVARIANT(sequence->num_computed_tokens < sequence->num_tokens(), "sequence ", sequence->id,
                    " has nothing to compute");
    blocks_.check_integrity(*sequence);
    for (const BlockId block : sequence->block_table) ++references[static_cast<std::size_t>(block)];
  }
  if (step_in_flight_)
    for (const BlockId source : plan_.block_copies.sources) ++references[static_cast<std::size_t>(source)];
  for (BlockId block = 0; block < config_.num_blocks; ++block)
    PAGED_INVARIANT(references[static_cast<std::size_t>(block)] == blocks_.num_references(block), "block ", block,
                    " has ", references[static_cast<std::size_t>(block)], " owners but ", blocks_.num_references(block),
                    " references");
}

}  // namespace paged

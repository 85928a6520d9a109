// SPDX-License-Identifier: Apache-2.0
// Turns a plan into a batch. A sequence keeps its row of block_tables while it runs and only the entries that changed
// are written, so a decoding sequence costs a few ints a step however long it is. A token that a step in flight samples
// is written as -1 - row. Allocates nothing.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/sequence.h"
#include "core/step_batch.h"
#include "core/step_plan.h"

namespace paged {

class BatchBuilder {
 public:
  BatchBuilder(const StepBatchLimits& limits, std::int32_t block_size)
      : block_size_(block_size), batch_(limits), last_written_(batch_.seq_lens.size()) {}

  // sequences_by_row: [max_num_sequences]; updates num_row_blocks of those in the plan. The batch is overwritten by the
  // next call.
  const StepBatch& build(const StepPlan& plan, std::span<Sequence* const> sequences_by_row);

 private:
  // A block: the positions in it, and what is added to one to give its slot.
  struct Span {
    std::int32_t begin = 0, end = 0, shift = 0;
  };
  Span span_of(const Sequence& sequence, std::int32_t position) const;
  void append_tokens(const Sequence& sequence, const ScheduledSequence& scheduled);
  void update_row(Sequence& sequence);

  std::int32_t block_size_;
  StepBatch batch_;
  std::vector<Span>
      last_written_;  // [max_num_sequences] by row; a decoding sequence writes there again, till it is full
};

}  // namespace paged

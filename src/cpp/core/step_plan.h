// SPDX-License-Identifier: Apache-2.0
// What one step does: which sequences run how many tokens, and which blocks are copied first. Written by
// Scheduler::schedule(), at a fixed address and valid until it is committed.
#pragma once

#include <cstdint>
#include <vector>

#include "core/block_manager.h"
#include "core/types.h"

namespace paged {

struct ScheduledSequence {
  SequenceId id = 0;
  std::int32_t row = 0;  // of block_tables: the sequence's for as long as it runs, so also a key for state of one's own
  std::int32_t num_computed_tokens = 0;   // before this step, once those in flight before it are done
  std::int32_t num_scheduled_tokens = 0;  // query_len
  bool samples = false;                   // false in mid-prefill
  std::int32_t num_scored = 0;            // logits rows of prompt tokens, before the one that samples
  std::int32_t first_scored = 0;          // the first of these tokens; its logits are in the row before it

  std::int32_t num_logits_rows() const { return num_scored + (samples ? 1 : 0); }

  // Of the token it samples in this step, if it does.
  std::int32_t sampled_position() const { return num_computed_tokens + num_scheduled_tokens; }
};

struct StepPlan {
  std::vector<ScheduledSequence> sequences;
  BlockCopies block_copies;
  std::vector<BlockId> retired_blocks;  // no table shows them, but steps up to this one may: freed at its commit
  std::int32_t num_tokens = 0;
  std::int32_t num_logits_rows = 0;

  void clear() {
    sequences.clear();
    block_copies.sources.clear();
    block_copies.destinations.clear();
    retired_blocks.clear();
    num_tokens = 0;
    num_logits_rows = 0;
  }
};

}  // namespace paged

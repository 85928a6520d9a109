// SPDX-License-Identifier: Apache-2.0
// What the step loop asks of whatever runs the model: steps in, sampled tokens out. Steps are launched and awaited in
// order. An executor that works asynchronously (a GPU) takes a second step while the first one runs; what the second
// one needs of the first, its sampled tokens, never leaves the device.
#pragma once

#include <cstdint>
#include <span>

#include "exec/kv_blocks.h"
#include "ops/batch_view.h"
#include "ops/logits_ops.h"
#include "ops/ops.h"

namespace paged {

// Of the rows that ask for more than a SamplingRow says; meanings as in EditLogitsParams.
struct StepExtras {
  std::span<const EditedRow> edited;
  std::span<const std::uint32_t> masks;
  std::span<const LogitBan> bans;
  std::span<const LogitBias> biases;
  std::span<const TokenCount> counts;
  std::span<const ScoredRow> scored;
  std::span<const std::int32_t> unedited;  // rows copied before their edits, for scored rows
  std::int32_t num_scores = 0;             // entries that the scored rows give
  std::span<const std::int32_t> exported;  // rows whose logits go to the host; what they sample means nothing
};

struct ExtraOutputs {
  std::span<const ScoredToken> scores;
  std::span<const float> exported;  // [exported rows, vocab_size]
};

struct StepInput {
  // token_ids[i] = -1 - row stands for the token that the sequence in row `row` of the block tables sampled last, in a
  // step that is still in flight. Only executors with max_steps_in_flight() > 1 ever see one.
  BatchView batch;
  // Entries of block_tables that changed since the last launch: flat indices into it. A device keeps its own copy.
  std::span<const std::int32_t> changed_table_entries;
  // Whole KV blocks, all layers, to copy before the step writes: destination[i] becomes source[i].
  std::span<const std::int32_t> copy_sources;
  std::span<const std::int32_t> copy_destinations;
  std::span<const SamplingRow> sampling;  // [batch.num_logits_rows]
  const StepExtras* extras = nullptr;     // null where no row asks for any
};

// What an executor was made for: no step may go beyond. 0: it does not care.
struct ExecutorLimits {
  std::int32_t num_blocks = 0;
  std::int32_t block_size = 0;
  std::int32_t max_seq_len = 0;
  std::int32_t max_tokens = 0;
  std::int32_t max_sequences = 0;  // rows of the block tables, and of the logits
};

class Executor {
 public:
  virtual ~Executor() = default;

  virtual ExecutorLimits limits() const { return {}; }

  virtual std::int32_t vocab_size() const = 0;
  virtual std::int32_t max_steps_in_flight() const { return 1; }

  // Starts a step; everything in the input may be overwritten as soon as it returns. At most max_steps_in_flight()
  // launched steps have not been awaited.
  virtual void launch(const StepInput& step) = 0;

  // Waits for the oldest launched step. Its sampled tokens, one for each of its logits rows, -1 where the logits are
  // not numbers; valid until the next call of wait().
  virtual std::span<const std::int32_t> wait() = 0;

  // What the extras of the step last awaited gave; valid until the next call of wait(). Only after a step with extras.
  virtual ExtraOutputs extra_outputs() const = 0;

  // Null: its blocks cannot be moved.
  virtual KvBlocks* kv_blocks() { return nullptr; }
};

}  // namespace paged

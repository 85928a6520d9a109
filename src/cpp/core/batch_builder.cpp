// SPDX-License-Identifier: Apache-2.0
#include "core/batch_builder.h"

#include <algorithm>

namespace paged {

const StepBatch& BatchBuilder::build(const StepPlan& plan, std::span<Sequence* const> sequences_by_row) {
  batch_.num_tokens = 0;
  batch_.num_sequences = 0;
  batch_.num_logits_rows = 0;
  batch_.num_decodes = 0;
  batch_.changed_table_entries.clear();
  for (const ScheduledSequence& scheduled : plan.sequences) {
    Sequence& sequence = *sequences_by_row[static_cast<std::size_t>(scheduled.row)];
    update_row(sequence);
    append_tokens(sequence, scheduled);
    const auto i = static_cast<std::size_t>(batch_.num_sequences++);
    batch_.query_start[i + 1] = batch_.num_tokens;
    batch_.seq_lens[i] = scheduled.num_computed_tokens + scheduled.num_scheduled_tokens;
    batch_.block_table_rows[i] = scheduled.row;
    batch_.is_decode[i] = scheduled.num_computed_tokens >= sequence.num_prompt_tokens ? 1 : 0;
    batch_.num_decodes += batch_.is_decode[i];
    for (std::int32_t scored = 0; scored < scheduled.num_scored; ++scored) {
      const std::int32_t position = scheduled.first_scored + scored - 1;
      const auto row = static_cast<std::size_t>(batch_.num_logits_rows++);
      batch_.logits_rows[row] = batch_.query_start[i] + position - scheduled.num_computed_tokens;
      batch_.sampled_table_rows[row] = static_cast<std::int32_t>(batch_.sampled_table_rows.size());  // nobody's
    }
    if (!scheduled.samples) continue;
    const auto sampled = static_cast<std::size_t>(batch_.num_logits_rows++);
    batch_.logits_rows[sampled] = batch_.num_tokens - 1;
    batch_.sampled_table_rows[sampled] = scheduled.row;
  }
  return batch_;
}

BatchBuilder::Span BatchBuilder::span_of(const Sequence& sequence, std::int32_t position) const {
  const std::int32_t index = position / block_size_;
  const std::int32_t begin = index * block_size_;
  return {begin, begin + block_size_, (sequence.block_table[static_cast<std::size_t>(index)] - index) * block_size_};
}

void BatchBuilder::append_tokens(const Sequence& sequence, const ScheduledSequence& scheduled) {
  auto out = static_cast<std::size_t>(batch_.num_tokens);
  std::int32_t position = scheduled.num_computed_tokens;
  const std::int32_t end = position + scheduled.num_scheduled_tokens;
  if (position < sequence.num_tokens())
    std::copy_n(sequence.tokens.begin() + position, end - position,
                batch_.token_ids.begin() + static_cast<std::ptrdiff_t>(out));
  else
    batch_.token_ids[out] = -1 - scheduled.row;  // pending, and so alone
  Span& span = last_written_[static_cast<std::size_t>(scheduled.row)];
  while (position < end) {  // one round for each block written
    if (position < span.begin || position >= span.end) span = span_of(sequence, position);
    for (const std::int32_t span_end = std::min(end, span.end); position < span_end; ++position, ++out) {
      batch_.positions[out] = position;
      batch_.slot_mapping[out] = position + span.shift;
    }
  }
  batch_.num_tokens += scheduled.num_scheduled_tokens;
}

void BatchBuilder::update_row(Sequence& sequence) {
  const auto num_blocks = static_cast<std::int32_t>(sequence.block_table.size());
  if (sequence.num_row_blocks == num_blocks) return;
  last_written_[static_cast<std::size_t>(sequence.row)] = {};
  const std::int32_t first = sequence.row * batch_.block_table_stride;
  for (std::int32_t i = sequence.num_row_blocks; i < num_blocks; ++i) {
    batch_.block_tables[static_cast<std::size_t>(first + i)] = sequence.block_table[static_cast<std::size_t>(i)];
    batch_.changed_table_entries.push_back(first + i);
  }
  sequence.num_row_blocks = num_blocks;
}

}  // namespace paged

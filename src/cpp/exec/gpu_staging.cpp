// SPDX-License-Identifier: Apache-2.0
#include "exec/gpu_staging.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace paged {
namespace {

constexpr std::int64_t kAlignment = 16;

std::int64_t after(std::int64_t offset, std::int64_t num_bytes) {
  return (offset + num_bytes + kAlignment - 1) / kAlignment * kAlignment;
}

std::int64_t ints_after(std::int64_t offset, std::int64_t count) {
  return after(offset, count * std::int64_t{sizeof(std::int32_t)});
}

}  // namespace

StagingLayout::StagingLayout(std::int32_t tokens, std::int32_t sequences, std::int32_t rows) {
  sampling = 0;
  token_ids = after(sampling, rows * std::int64_t{sizeof(SamplingRow)});
  positions = ints_after(token_ids, tokens);
  slot_mapping = ints_after(positions, tokens);
  query_start = ints_after(slot_mapping, tokens);
  seq_lens = ints_after(query_start, std::int64_t{sequences} + 1);
  block_table_rows = ints_after(seq_lens, sequences);
  is_decode = ints_after(block_table_rows, sequences);
  logits_rows = ints_after(is_decode, sequences);
  sampled_table_rows = ints_after(logits_rows, rows);
  num_table_changes = ints_after(sampled_table_rows, rows);
  table_changes = ints_after(num_table_changes, 1);
}

std::int64_t GpuStaging::max_bytes(const StagingLimits& limits) {
  const StagingLayout layout(limits.max_tokens, limits.max_sequences, limits.max_sequences);
  const std::int64_t entries = std::int64_t{limits.max_sequences} * limits.max_blocks_per_sequence;
  return ints_after(ints_after(layout.table_changes, 2 * entries), 2 * std::int64_t{limits.max_sequences});
}

BatchView GpuStaging::write(const StepInput& step, std::int32_t padded, std::byte* device) {
  BatchView view = step.batch;
  view.num_tokens = std::max(view.num_tokens, padded);
  view.num_sequences = std::max(view.num_sequences, padded);
  view.num_logits_rows = std::max(view.num_logits_rows, padded);
  view.num_decodes += view.num_sequences - step.batch.num_sequences;
  PAGED_INVARIANT(view.num_tokens <= limits_.max_tokens && view.num_sequences <= limits_.max_sequences &&
                      view.num_logits_rows <= limits_.max_sequences,
                  "a step of ", view.num_tokens, " tokens, ", view.num_sequences, " sequences and ",
                  view.num_logits_rows, " logits rows exceeds the staging buffer");
  layout_ = StagingLayout(view.num_tokens, view.num_sequences, view.num_logits_rows);
  write_arrays(step.batch);
  if (padded > 0) write_idle(step.batch, padded);
  std::copy(step.sampling.begin(), step.sampling.end(), at<SamplingRow>(layout_.sampling));
  write_tail(step);
  const auto on_device = [&](std::int64_t offset) { return reinterpret_cast<const std::int32_t*>(device + offset); };
  view.positions = on_device(layout_.positions);
  view.slot_mapping = on_device(layout_.slot_mapping);
  view.query_start = on_device(layout_.query_start);
  view.seq_lens = on_device(layout_.seq_lens);
  view.block_table_rows = on_device(layout_.block_table_rows);
  view.is_decode = on_device(layout_.is_decode);
  view.logits_rows = on_device(layout_.logits_rows);
  view.sampled_table_rows = on_device(layout_.sampled_table_rows);
  return view;
}

void GpuStaging::write_arrays(const BatchView& batch) {
  const auto put = [&](std::int64_t offset, const std::int32_t* from, std::int64_t count) {
    std::memcpy(memory_ + offset, from, static_cast<std::size_t>(count) * sizeof(std::int32_t));
  };
  put(layout_.token_ids, batch.token_ids, batch.num_tokens);
  put(layout_.positions, batch.positions, batch.num_tokens);
  put(layout_.slot_mapping, batch.slot_mapping, batch.num_tokens);
  put(layout_.query_start, batch.query_start, batch.num_sequences + 1);
  put(layout_.seq_lens, batch.seq_lens, batch.num_sequences);
  put(layout_.block_table_rows, batch.block_table_rows, batch.num_sequences);
  put(layout_.is_decode, batch.is_decode, batch.num_sequences);
  put(layout_.logits_rows, batch.logits_rows, batch.num_logits_rows);
  put(layout_.sampled_table_rows, batch.sampled_table_rows, batch.num_logits_rows);
}

// Idle sequences store nothing, attend to nothing, and sample into the spare row past the last one.
void GpuStaging::write_idle(const BatchView& batch, std::int32_t padded) {
  for (std::int32_t i = batch.num_tokens; i < padded; ++i) {
    at<std::int32_t>(layout_.token_ids)[i] = 0;
    at<std::int32_t>(layout_.positions)[i] = 0;
    at<std::int32_t>(layout_.slot_mapping)[i] = -1;
    at<std::int32_t>(layout_.query_start)[i + 1] = i + 1;
    at<std::int32_t>(layout_.seq_lens)[i] = 0;
    at<std::int32_t>(layout_.block_table_rows)[i] = 0;
    at<std::int32_t>(layout_.is_decode)[i] = 1;
    at<std::int32_t>(layout_.logits_rows)[i] = i;
    at<std::int32_t>(layout_.sampled_table_rows)[i] = limits_.max_sequences;
    at<SamplingRow>(layout_.sampling)[i] = SamplingRow{};
  }
}

void GpuStaging::write_tail(const StepInput& step) {
  const auto num_changes = static_cast<std::int32_t>(step.changed_table_entries.size());
  *at<std::int32_t>(layout_.num_table_changes) = num_changes;
  std::int32_t* change = at<std::int32_t>(layout_.table_changes);
  for (const std::int32_t entry : step.changed_table_entries) {
    *change++ = entry;
    *change++ = step.batch.block_tables[entry];
  }
  copies_ = ints_after(layout_.table_changes, 2 * std::int64_t{num_changes});
  const auto num_copies = static_cast<std::int64_t>(step.copy_sources.size());
  std::copy(step.copy_sources.begin(), step.copy_sources.end(), at<std::int32_t>(copies_));
  std::copy(step.copy_destinations.begin(), step.copy_destinations.end(), at<std::int32_t>(copies_) + num_copies);
}

}  // namespace paged

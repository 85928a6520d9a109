// SPDX-License-Identifier: Apache-2.0
// Owns the flat int32 arrays of one step's batch, allocated once for the limits: their addresses never change, only
// the counts do. Field by field what ops/batch_view.h shows to the kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace paged {

struct StepBatchLimits {
  std::int32_t max_num_tokens = 0;
  std::int32_t max_num_sequences = 0;
  std::int32_t max_blocks_per_sequence = 0;
};

struct StepBatch {
  explicit StepBatch(const StepBatchLimits& limits)
      : token_ids(static_cast<std::size_t>(limits.max_num_tokens)),
        positions(token_ids.size()),
        slot_mapping(token_ids.size()),
        query_start(static_cast<std::size_t>(limits.max_num_sequences) + 1),
        seq_lens(static_cast<std::size_t>(limits.max_num_sequences)),
        block_table_rows(seq_lens.size()),
        is_decode(seq_lens.size()),
        block_tables(seq_lens.size() * static_cast<std::size_t>(limits.max_blocks_per_sequence)),
        logits_rows(seq_lens.size()),
        sampled_table_rows(seq_lens.size()),
        block_table_stride(limits.max_blocks_per_sequence) {
    changed_table_entries.reserve(block_tables.size());  // more than one step ever writes
  }
  StepBatch(const StepBatch&) = delete;
  StepBatch& operator=(const StepBatch&) = delete;

  std::int32_t num_tokens = 0;
  std::int32_t num_sequences = 0;
  std::int32_t num_logits_rows = 0;
  std::int32_t num_decodes = 0;
  std::vector<std::int32_t> token_ids;         // [max_num_tokens] -1 - row: what that row's sequence sampled last
  std::vector<std::int32_t> positions;         // [max_num_tokens]
  std::vector<std::int32_t> slot_mapping;      // [max_num_tokens] block_id * block_size + offset
  std::vector<std::int32_t> query_start;       // [max_num_sequences + 1] exclusive sums of query_len
  std::vector<std::int32_t> seq_lens;          // [max_num_sequences] tokens in the cache after the step
  std::vector<std::int32_t> block_table_rows;  // [max_num_sequences] row of block_tables
  std::vector<std::int32_t> is_decode;         // [max_num_sequences] 1 where the scheduled tokens were generated
  std::vector<std::int32_t> block_tables;  // [max_num_sequences, block_table_stride]; past its blocks a row is stale
  std::vector<std::int32_t> logits_rows;   // [max_num_sequences] last scheduled token of each sequence that samples
  // [max_num_sequences] row of block_tables of each that samples; max_num_sequences for logits that only score a prompt
  std::vector<std::int32_t> sampled_table_rows;
  std::vector<std::int32_t> changed_table_entries;  // flat indices of what this build wrote into block_tables
  std::int32_t block_table_stride;
};

}  // namespace paged

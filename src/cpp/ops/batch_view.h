// SPDX-License-Identifier: Apache-2.0
// One step's batch as the kernels see it: flat int32 arrays. The arrays live at fixed addresses for the engine's
// whole life, so a recorded graph may keep the pointers; only the counts change from step to step.
#pragma once

#include <cstdint>

namespace paged {

struct BatchView {
  std::int32_t num_tokens = 0;  // scheduled tokens of all sequences, concatenated
  std::int32_t num_sequences = 0;
  std::int32_t num_logits_rows = 0;                // rows that sample (or are scored) in this step
  std::int32_t num_decodes = 0;                    // sequences with is_decode set
  const std::int32_t* token_ids = nullptr;         // [num_tokens]
  const std::int32_t* positions = nullptr;         // [num_tokens] absolute position inside its sequence
  const std::int32_t* slot_mapping = nullptr;      // [num_tokens] block_id * block_size + offset; -1 stores nothing
  const std::int32_t* query_start = nullptr;       // [num_sequences + 1] first token of each sequence; exclusive sums
  const std::int32_t* seq_lens = nullptr;          // [num_sequences] tokens in the cache after this step
  const std::int32_t* block_table_rows = nullptr;  // [num_sequences] row of block_tables that holds the sequence
  // [num_sequences] 1 where the scheduled tokens were generated, 0 where they are of a prompt, never both: picks the
  // attention kernel. Usually one token; several where a preempted sequence computes them again.
  const std::int32_t* is_decode = nullptr;
  const std::int32_t* block_tables = nullptr;        // [max_sequences, block_table_stride] block ids
  const std::int32_t* logits_rows = nullptr;         // [num_logits_rows] indices into the scheduled tokens
  const std::int32_t* sampled_table_rows = nullptr;  // [num_logits_rows] row of block_tables of the one that samples
  std::int32_t block_table_stride = 0;

  const std::int32_t* block_table(std::int32_t sequence) const {
    return block_tables + std::int64_t{block_table_rows[sequence]} * block_table_stride;
  }
  std::int32_t query_len(std::int32_t sequence) const { return query_start[sequence + 1] - query_start[sequence]; }
};

}  // namespace paged

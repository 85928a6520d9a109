// SPDX-License-Identifier: Apache-2.0
// A step's inputs on their way to a GPU: laid out in one piece of page-locked memory, from which the step's first
// kernel fetches them. Where an array lies depends on the counts alone: a recorded graph for some counts finds it in
// the same place every time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "exec/executor.h"

namespace paged {

struct StagingLimits {
  std::int32_t max_tokens = 0;
  std::int32_t max_sequences = 0;
  std::int32_t max_blocks_per_sequence = 0;
};

// Byte offsets of the arrays for `tokens` tokens, `sequences` sequences and `rows` logits rows; what varies most comes
// last and is as long as the step needs.
struct StagingLayout {
  StagingLayout(std::int32_t tokens, std::int32_t sequences, std::int32_t rows);

  std::int64_t sampling, token_ids, positions, slot_mapping, query_start, seq_lens, block_table_rows, is_decode,
      logits_rows, sampled_table_rows, num_table_changes, table_changes;
};

class GpuStaging {
 public:
  // `memory`: max_bytes(limits) of them, 16-byte aligned; must outlive this.
  GpuStaging(const StagingLimits& limits, std::byte* memory) : limits_(limits), memory_(memory) {}

  // Writes the step, filled up with idle sequences of one token to `padded` of everything if that is more. The view
  // has the padded counts and, but for token_ids and block_tables, pointers into `device`.
  BatchView write(const StepInput& step, std::int32_t padded, std::byte* device);

  const std::byte* data() const { return memory_; }
  static std::int64_t max_bytes(const StagingLimits& limits);

  std::int64_t copies_offset() const { return copies_; }  // of the last write: sources, then destinations

 private:
  template <typename T>
  T* at(std::int64_t offset) const {
    return reinterpret_cast<T*>(memory_ + offset);
  }
  void write_arrays(const BatchView& batch);
  void write_idle(const BatchView& batch, std::int32_t padded);
  void write_tail(const StepInput& step);

  StagingLimits limits_;
  std::byte* memory_;
  StagingLayout layout_{0, 0, 0};
  std::int64_t copies_ = 0;
};

}  // namespace paged

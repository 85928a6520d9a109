// SPDX-License-Identifier: Apache-2.0
// What a hand-made batch must keep so that no kernel leaves its arrays. The engine's own batches keep it by
// construction.
#pragma once

#include <cstdint>

#include "base/check.h"
#include "ops/batch_view.h"

namespace paged {

// [low, high)
struct Range {
  std::int64_t low;
  std::int64_t high;
};

inline void check_indices(const char* name, const std::int32_t* values, std::int64_t count, Range range) {
  for (std::int64_t i = 0; i < count; ++i)
    PAGED_CHECK(values[i] >= range.low && values[i] < range.high, name, "[", i, "] is ", values[i], ", not in [",
                range.low, ", ", range.high, ")");
}

struct PoolShape {
  std::int32_t num_blocks;
  std::int32_t block_size;
};

// The sequences tile the tokens, each with its own last, and their blocks are in the pool.
inline void check_sequences(const BatchView& batch, PoolShape pool) {
  PAGED_CHECK(batch.query_start[0] == 0 && batch.query_start[batch.num_sequences] == batch.num_tokens,
              "query_start must run from 0 to the ", batch.num_tokens, " tokens");
  for (std::int32_t i = 0; i < batch.num_sequences; ++i) {
    PAGED_CHECK(batch.query_start[i] <= batch.query_start[i + 1], "query_start decreases at sequence ", i);
    const std::int64_t num_blocks = (std::int64_t{batch.seq_lens[i]} + pool.block_size - 1) / pool.block_size;
    PAGED_CHECK(batch.seq_lens[i] >= batch.query_len(i) && num_blocks <= batch.block_table_stride, "seq_lens[", i,
                "] is ", batch.seq_lens[i], ": the sequence has ", batch.query_len(i), " tokens in the batch and ",
                batch.block_table_stride, " blocks of ", pool.block_size);
    check_indices("block_tables", batch.block_table(i), num_blocks, {0, pool.num_blocks});
  }
}

}  // namespace paged

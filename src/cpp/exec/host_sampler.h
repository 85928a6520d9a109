// SPDX-License-Identifier: Apache-2.0
// Samples a step's logits on the host's threads: what executors whose logits lie in host memory share.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/aligned_buffer.h"
#include "cpu/thread_pool.h"
#include "exec/executor.h"

namespace paged {

class HostSampler {
 public:
  HostSampler(std::shared_ptr<ThreadPool> threads, std::int32_t vocab_size);

  // logits: [rows.size(), vocab_size], where edits are made in place; may be null when nothing samples. extras may be
  // null. `unedited` is what unedited rows are copied from, if it is not the logits.
  void sample(float* logits, std::span<const SamplingRow> rows, const StepExtras* extras,
              const float* unedited = nullptr);

  // Of the last sample(): a token for each row, -1 where the logits are not numbers.
  std::span<const std::int32_t> token_ids() const { return token_ids_; }
  ExtraOutputs extra_outputs() const { return {scores_, exported_}; }

 private:
  void copy_rows(const float* logits, std::span<const std::int32_t> rows, std::vector<float>& out) const;

  std::shared_ptr<ThreadPool> threads_;
  std::int32_t vocab_size_;
  AlignedBuffer workspace_;
  std::vector<std::int32_t> token_ids_;
  std::vector<float> exported_;
  std::vector<float> unedited_;
  std::vector<ScoredToken> scores_;
};

}  // namespace paged

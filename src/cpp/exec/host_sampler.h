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
  // null.
  void sample(float* logits, std::span<const SamplingRow> rows, const StepExtras* extras);

  // Of the last sample(): a token for each row, -1 where the logits are not numbers.
  std::span<const std::int32_t> token_ids() const { return token_ids_; }
  ExtraOutputs extra_outputs() const { return {exported_}; }

 private:
  std::shared_ptr<ThreadPool> threads_;
  std::int32_t vocab_size_;
  AlignedBuffer workspace_;
  std::vector<std::int32_t> token_ids_;
  std::vector<float> exported_;
};

}  // namespace paged

// SPDX-License-Identifier: Apache-2.0
// What the step loop asks of whatever runs the model: a batch in, logits out. Implemented by ProgramExecutor here and,
// for any torch device, by a Python object (bindings/python_executor.h).
#pragma once

#include <cstdint>
#include <span>

#include "ops/batch_view.h"

namespace paged {

class Executor {
 public:
  virtual ~Executor() = default;

  virtual std::int32_t vocab_size() const = 0;

  // Copies whole KV blocks, all layers, before the next run: destination[i] becomes source[i].
  virtual void copy_blocks(std::span<const std::int32_t> source, std::span<const std::int32_t> destination) = 0;

  // Runs one step and stores the step's keys and values. Returns [batch.num_logits_rows, vocab_size] float32, valid
  // until the next call; null when no row samples.
  virtual const float* run(const BatchView& batch) = 0;
};

}  // namespace paged

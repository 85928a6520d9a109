// SPDX-License-Identifier: Apache-2.0
// The extras of a step on a GPU: brought over in one copy, applied to the logits, their outputs brought back. Buffers
// come into being with the first step that has extras, and grow to what the largest one needs.
#pragma once

#include <array>
#include <cstdint>

#include "exec/executor.h"
#include "gpu/runtime.h"

namespace paged {

class GpuExtras {
 public:
  // All on the stream; `slot` is the step's, and what it held is no longer needed.
  struct Step {
    int slot = 0;
    const StepExtras* extras = nullptr;
    MatrixView logits;
    const std::int32_t* last_tokens = nullptr;  // on the device, as
    const std::int32_t* sampled = nullptr;
  };

  // What must happen before the step samples.
  void enqueue_before(const ExecutionContext& context, const Step& step);
  // What follows when the tokens are sampled.
  void enqueue_after(const ExecutionContext& context, const Step& step);

  ExtraOutputs outputs(int slot) const;
  std::int64_t num_bytes() const { return inputs_.num_bytes() + unedited_.num_bytes() + scores_.num_bytes(); }

 private:
  struct Slot {
    gpu::PinnedBuffer staging;
    gpu::PinnedBuffer exported;  // float [num_exported]
    gpu::PinnedBuffer scores;
    std::int64_t num_exported = 0, num_scores = 0;
  };
  // Where the arrays lie in the staging buffer, and on the device.
  struct Layout {
    explicit Layout(const StepExtras& extras);
    std::int64_t edited, masks, bans, biases, counts, scored, unedited, num_bytes;
  };
  void stage(const ExecutionContext& context, const Step& step, const Layout& layout);
  void export_rows(const ExecutionContext& context, const Step& step);

  std::array<Slot, 2> slots_;
  gpu::DeviceBuffer inputs_, unedited_, scores_;
};

}  // namespace paged

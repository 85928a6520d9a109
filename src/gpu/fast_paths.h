// SPDX-License-Identifier: Apache-2.0
// What a vendor may do faster than the shared kernels. Each returns false where it does not take the case; then the
// shared kernel runs. The choice depends on shapes, dtypes, the chip and (not when batch_invariant) the number of rows,
// never on the contents of the batch. src/cuda, src/hip and tests/gpu_emu implement them.
#pragma once

#include "ops/gpu_ops.h"

namespace paged::gpu {

bool fast_linear(const ExecutionContext& context, const LinearParams& params);
bool fast_gated_linear(const ExecutionContext& context, const GatedLinearParams& params);

// Attention of the sequences with is_decode, resp. of the others (rows of which the other one must not touch). Each has
// its own part of the step's plan and of the workspace.
class FastAttention {
 public:
  virtual ~FastAttention() = default;
  virtual std::int64_t plan_bytes(const GpuContext& gpu, const AttentionLimits& limits) const = 0;
  virtual std::int64_t workspace_bytes(const GpuContext& gpu, const AttentionLimits& limits) const = 0;
  virtual bool takes(const GpuContext& gpu, const AttentionShape& shape) const = 0;
  // Both as the op of the same name; plan and workspace are this kernel's own parts.
  virtual void plan(const ExecutionContext& context, const AttentionPlanParams& params) const = 0;
  virtual void run(const ExecutionContext& context, const AttentionParams& params) const = 0;
};
// Null where the vendor has none. The first that takes a shape runs.
const FastAttention* fast_decode_attention(const GpuContext& gpu, const AttentionShape& shape);
const FastAttention* fast_prefill_attention(const GpuContext& gpu, const AttentionShape& shape);

}  // namespace paged::gpu

// SPDX-License-Identifier: Apache-2.0
// What a vendor may do faster than the shared kernels. Each returns false where it does not take the case; then the
// shared kernel runs. The choice depends on shapes, dtypes, the chip and (not when batch_invariant) the number of
// rows. src/cuda/fast_paths.cu, src/hip/fast_paths.cpp and tests/gpu_emu/fast_paths.cpp implement them.
#pragma once

#include "ops/ops.h"

namespace paged::gpu {

bool fast_linear(const ExecutionContext& context, const LinearParams& params);
bool fast_gated_linear(const ExecutionContext& context, const GatedLinearParams& params);
// Of the sequences with is_decode, resp. of the others; the plan was made by the matching planner in this step.
bool fast_decode_attention(const ExecutionContext& context, const AttentionParams& params);
bool fast_prefill_attention(const ExecutionContext& context, const AttentionParams& params);
void plan_fast_decode_attention(const ExecutionContext& context, const AttentionPlanParams& params);
void plan_fast_prefill_attention(const ExecutionContext& context, const AttentionPlanParams& params);

}  // namespace paged::gpu

// SPDX-License-Identifier: Apache-2.0
#include "ops/logits_ops.h"

#include "ops/shape_checks.h"

namespace paged::ops {

void edit_logits(const ExecutionContext& context, const EditLogitsParams& params) {
  check_matrix("edit_logits", "logits", params.logits, {params.logits.rows, params.logits.cols});
  check_dtype("edit_logits", "logits", params.logits.dtype, DType::kFloat32);
  if (params.num_rows == 0) return;
  if (context.device == Device::kGpu) return gpu::edit_logits(context, params);
  cpu::edit_logits(pool_of(context), params);
}

void score_logits(const ExecutionContext& context, const ScoreLogitsParams& params) {
  check_matrix("score_logits", "logits", params.logits, {params.logits.rows, params.logits.cols});
  check_dtype("score_logits", "logits", params.logits.dtype, DType::kFloat32);
  if (params.num_rows == 0) return;
  if (context.device == Device::kGpu) return gpu::score_logits(context, params);
  cpu::score_logits(pool_of(context), params);
}

}  // namespace paged::ops

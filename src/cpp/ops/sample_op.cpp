// SPDX-License-Identifier: Apache-2.0
#include "cpu/cpu_ops.h"
#include "ops/gpu_ops.h"
#include "ops/shape_checks.h"

namespace paged::ops {

void sample(const ExecutionContext& context, const SampleParams& params) {
  check_matrix("sample", "logits", params.logits, {params.logits.rows, params.logits.cols});
  check_dtype("sample", "logits", params.logits.dtype, DType::kFloat32);
  PAGED_CHECK(params.logits.cols > 0 && params.logits.cols < (std::int64_t{1} << 31), "sample: a vocabulary of ",
              params.logits.cols);
  if (context.device == Device::kGpu) return gpu::sample(context, params);
  cpu::sample(pool_of(context), params);
}

std::int64_t sample_workspace_bytes(int num_threads, std::int64_t vocab_size) {
  return cpu::sample_workspace_bytes(num_threads, vocab_size);
}

}  // namespace paged::ops

// SPDX-License-Identifier: Apache-2.0
#include "cpu/cpu_ops.h"
#include "ops/gpu_ops.h"
#include "ops/shape_checks.h"

namespace paged::ops {

void embedding(const ExecutionContext& context, const EmbeddingParams& params) {
  PAGED_CHECK(params.table != nullptr, "embedding: no table");
  check_matrix("embedding", "out", params.out, {params.out.rows, params.table->cols});
  PAGED_CHECK(params.out.cols * 4 <= static_cast<std::int64_t>(ThreadPool::kScratchBytes),
              "embedding: rows of at most ", ThreadPool::kScratchBytes / 4, " columns are supported, got ",
              params.out.cols);
  if (context.device == Device::kGpu) return gpu::embedding(context, params);
  cpu::embedding(pool_of(context), params);
}

void linear(const ExecutionContext& context, const LinearParams& params) {
  PAGED_CHECK(params.num_parts > 0, "linear: no weights");
  std::int64_t cols = 0;
  for (int i = 0; i < params.num_parts; ++i) {
    const WeightMatrix& part = *params.parts[i];
    PAGED_CHECK(part.cols == params.x.cols, "linear: part ", i, " is [", part.rows, ", ", part.cols, "] but x has ",
                params.x.cols, " columns");
    cols += part.rows;
  }
  check_matrix("linear", "x", params.x, {params.x.rows, params.x.cols});
  check_matrix("linear", "out", params.out, {params.x.rows, cols});
  PAGED_CHECK(params.out.dtype == DType::kFloat32 || params.out.dtype == params.x.dtype,
              "linear: out must be float32 or x's ", name_of(params.x.dtype), ", got ", name_of(params.out.dtype));
  if (context.device == Device::kGpu) return gpu::linear(context, params);
  cpu::linear(pool_of(context), params);
}

void gated_linear(const ExecutionContext& context, const GatedLinearParams& params) {
  const bool parted = context.device == Device::kCpu;
  PAGED_CHECK(parted == (params.up != nullptr), "gated_linear: on the CPU it takes two matrices, on a GPU one");
  const std::int64_t rows = params.matrix->rows + (parted ? params.up->rows : 0);
  PAGED_CHECK(params.matrix->cols == params.x.cols && rows == 2 * params.out.cols, "gated_linear: the matrices are [",
              rows, ", ", params.matrix->cols, "], expected [", 2 * params.out.cols, ", ", params.x.cols, "]");
  PAGED_CHECK(!parted || (params.up->rows == params.matrix->rows && params.up->cols == params.matrix->cols),
              "gated_linear: up is [", params.up->rows, ", ", params.up->cols, "], expected the gate's shape");
  check_matrix("gated_linear", "x", params.x, {params.x.rows, params.x.cols});
  check_matrix("gated_linear", "out", params.out, {params.x.rows, params.out.cols});
  check_matrix("gated_linear", "gate_up", params.gate_up, {params.x.rows, 2 * params.out.cols});
  check_dtype("gated_linear", "out", params.out.dtype, params.x.dtype);
  check_dtype("gated_linear", "gate_up", params.gate_up.dtype, params.x.dtype);
  if (context.device == Device::kGpu) return gpu::gated_linear(context, params);
  cpu::gated_linear(pool_of(context), params);
}

std::int64_t linear_workspace_bytes(std::int64_t max_rows, std::int64_t max_cols, int num_threads) {
  return cpu::linear_workspace_bytes(max_rows, max_cols, num_threads);
}

}  // namespace paged::ops

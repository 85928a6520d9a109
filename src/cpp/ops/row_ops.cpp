// SPDX-License-Identifier: Apache-2.0
#include "cpu/cpu_ops.h"
#include "ops/gpu_ops.h"
#include "ops/shape_checks.h"

namespace paged::ops {

void rms_norm(const ExecutionContext& context, const RmsNormParams& params) {
  check_like("rms_norm", "x", params.x, params.x);
  check_like("rms_norm", "out", params.out, params.x);
  PAGED_CHECK(params.width > 0 && params.x.cols % params.width == 0, "rms_norm: width ", params.width,
              " does not divide the ", params.x.cols, " columns");
  if (context.device == Device::kGpu) return gpu::rms_norm(context, params);
  cpu::rms_norm(pool_of(context), params);
}

void add_rms_norm(const ExecutionContext& context, const AddRmsNormParams& params) {
  check_like("add_rms_norm", "residual", params.residual, params.residual);
  check_like("add_rms_norm", "delta", params.delta, params.residual);
  check_like("add_rms_norm", "residual_out", params.residual_out, params.residual);
  check_like("add_rms_norm", "out", params.out, params.residual);
  if (context.device == Device::kGpu) return gpu::add_rms_norm(context, params);
  cpu::add_rms_norm(pool_of(context), params);
}

void add(const ExecutionContext& context, const AddParams& params) {
  check_like("add", "a", params.a, params.a);
  check_like("add", "b", params.b, params.a);
  check_like("add", "out", params.out, params.a);
  if (context.device == Device::kGpu) return gpu::add(context, params);
  cpu::add(pool_of(context), params);
}

void gated_activation(const ExecutionContext& context, const GatedActivationParams& params) {
  check_like("gated_activation", "gate", params.gate, params.gate);
  check_like("gated_activation", "up", params.up, params.gate);
  check_like("gated_activation", "out", params.out, params.gate);
  if (context.device == Device::kGpu) return gpu::gated_activation(context, params);
  cpu::gated_activation(pool_of(context), params);
}

void softcap(const ExecutionContext& context, const SoftcapParams& params) {
  check_like("softcap", "x", params.x, params.x);
  check_like("softcap", "out", params.out, params.x);
  PAGED_CHECK(params.cap > 0.0f, "softcap: cap must be positive, got ", params.cap);
  if (context.device == Device::kGpu) return gpu::softcap(context, params);
  cpu::softcap(pool_of(context), params);
}

void gather_rows(const ExecutionContext& context, const GatherRowsParams& params) {
  check_like("gather_rows", "x", params.x, params.x);
  check_matrix("gather_rows", "out", params.out, {params.out.rows, params.x.cols});
  check_dtype("gather_rows", "out", params.out.dtype, params.x.dtype);
  if (context.device == Device::kGpu) return gpu::gather_rows(context, params);
  cpu::gather_rows(pool_of(context), params);
}

}  // namespace paged::ops

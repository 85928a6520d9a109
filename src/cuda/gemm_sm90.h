// SPDX-License-Identifier: Apache-2.0
// The engine's own matrix products on Hopper, for any number of rows: gemm_sm90_slab.cuh for few, gemm_sm90_tile.cuh
// for more. If batch_invariant, a row's bits do not depend on how many there are: slabs then sum up as tiles do.
#pragma once

#include "ops/ops.h"

namespace paged::gpu {

// out = x @ weights.T + bias, or, if gated, activation(x @ weights[:N].T) * (x @ weights[N:].T) with N = out.cols.
struct GemmProblem {
  MatrixView x;         // 16-bit elements, K a multiple of 8, rows 16-byte aligned
  const void* weights;  // row-major [out.cols or 2 * out.cols, x.cols] in x's dtype
  const float* bias;    // [out.cols] or null; null if gated
  MatrixView out;       // float32 (not if gated), or x's dtype with even columns and stride; gated: columns by 8
  bool gated;
  Activation activation;
};

void gemm_sm90_bfloat16(const GpuContext& gpu, const GemmProblem& problem);
void gemm_sm90_float16(const GpuContext& gpu, const GemmProblem& problem);

}  // namespace paged::gpu

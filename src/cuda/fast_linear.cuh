// SPDX-License-Identifier: Apache-2.0
// Which matrix product runs: the engine's own kernels for few rows, the vendor's library for many. Where the bits of a
// row may not depend on the number of rows, only the engine's own.
#pragma once

#include <ptx_sm90.h>

#include "cuda/gemm_sm90.h"
#include "gpu/blas.h"
#include "gpu/device_matrix.h"
#include "gpu/fast_paths.h"
#include "gpu/gpu.h"

namespace paged::gpu {
namespace {

// Up to how many rows the own kernels are faster than cuBLASLt in a decode step, measured on H100 with 0.6B, 1B and 8B
// models: alone the library is as fast from some 64 rows on where matrices are small, but its kernels do not overlap
// with what comes before and after them. Gated products are faster for any number of rows: they have the activation
// inside.
constexpr std::int64_t kMaxOwnRows = 128;
// Of a small matrix that is wider than deep (qkv): what overlaps there is worth more than the library's faster kernel.
constexpr std::int64_t kMaxOwnWideRows = 256, kMaxOwnWideBytes = 16 << 20;

bool aligned(const void* data, std::uintptr_t bytes) { return reinterpret_cast<std::uintptr_t>(data) % bytes == 0; }

bool is_wide(const MatrixView& x, const MatrixView& out) {
  return out.cols > x.cols && out.cols * x.cols * size_of(x.dtype) <= kMaxOwnWideBytes;
}

bool gemm_sm90_takes(const GpuContext& gpu, const GemmProblem& problem) {
  const MatrixView &x = problem.x, &out = problem.out;
  const std::int64_t most = is_wide(x, out) ? kMaxOwnWideRows : kMaxOwnRows;
  const bool may = gpu.batch_invariant || gpu.blas == nullptr || problem.gated || x.rows <= most;
  const bool reads = x.dtype != DType::kFloat32 && x.cols % 8 == 0 && x.row_stride % 8 == 0 && aligned(x.data, 16) &&
                     aligned(problem.weights, 16);
  const bool writes = out.dtype == DType::kFloat32
                          ? !problem.gated
                          : out.cols % 2 == 0 && out.row_stride % 2 == 0 && aligned(out.data, 4);
  return has_sm90(gpu) && may && reads && writes && (!problem.gated || out.cols % 8 == 0);
}

bool run_own(const GpuContext& gpu, const GemmProblem& problem) {
  if (!gemm_sm90_takes(gpu, problem)) return false;
  problem.x.dtype == DType::kBFloat16 ? gemm_sm90_bfloat16(gpu, problem) : gemm_sm90_float16(gpu, problem);
  return true;
}

template <class T>
__global__ void fill_rows_kernel(T* out, std::int64_t row_stride, int cols, const float* bias) {
  release_dependents();
  wait_for_predecessors();
  const int col = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (col < cols) out[blockIdx.y * row_stride + col] = from_float<T>(bias[col]);
}

// The library adds onto the bias: exact where the bias came from a checkpoint in out's dtype.
bool run_blas(const GpuContext& gpu, const MatrixView& x, const void* weights, const float* bias,
              const MatrixView& out) {
  if (gpu.blas == nullptr || gpu.batch_invariant) return false;
  if (bias == nullptr) return gpu.blas->gemm(gpu, x, weights, out, false);
  with_type(out.dtype, [&](auto element) {
    using T = decltype(element);
    launch(fill_rows_kernel<T>, dim3(static_cast<unsigned>((out.cols + 255) / 256), static_cast<unsigned>(out.rows)),
           dim3(256), 0, static_cast<Stream>(gpu.stream), static_cast<T*>(out.data), out.row_stride,
           static_cast<int>(out.cols), bias);
  });
  return gpu.blas->gemm(gpu, x, weights, out, true);
}

}  // namespace

bool fast_linear(const ExecutionContext& context, const LinearParams& params) {
  const GpuContext& gpu = *context.gpu;
  if (params.num_parts != 1) return false;
  const DeviceMatrix& matrix = device_matrix(*params.parts[0]);
  if (matrix.dtype != params.x.dtype) return false;
  if (params.x.rows == 0) return true;
  const GemmProblem problem{params.x, matrix.data(), params.bias, params.out, false, Activation::kSilu};
  return run_own(gpu, problem) || run_blas(gpu, params.x, matrix.data(), params.bias, params.out);
}

bool fast_gated_linear(const ExecutionContext& context, const GatedLinearParams& params) {
  const GpuContext& gpu = *context.gpu;
  const DeviceMatrix& matrix = device_matrix(*params.matrix);
  if (matrix.dtype != params.x.dtype) return false;
  if (params.x.rows == 0) return true;
  if (run_own(gpu, {params.x, matrix.data(), nullptr, params.out, true, params.activation})) return true;
  if (!run_blas(gpu, params.x, matrix.data(), nullptr, params.gate_up)) return false;
  MatrixView gate = params.gate_up, up = params.gate_up;
  gate.cols = up.cols = params.out.cols;
  up.data = static_cast<std::byte*>(up.data) + gate.cols * size_of(gate.dtype);
  gated_activation(context, {gate, up, params.activation, params.out});
  return true;
}

}  // namespace paged::gpu

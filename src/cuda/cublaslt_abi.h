// SPDX-License-Identifier: Apache-2.0
// The few functions and constants of cuBLASLt that blas.cpp uses, declared here because the library is loaded at run
// time and its header is not needed to build. The values are part of the library's binary interface and the same in
// versions 12 and 13.
#pragma once

#include <cuda_runtime_api.h>
#include <library_types.h>

#include <cstddef>
#include <cstdint>

namespace paged::gpu::cublaslt {

using Handle = void*;
using MatmulDesc = void*;
using MatrixLayout = void*;
using Preference = void*;
using Status = int;

constexpr Status kSuccess = 0, kNotSupported = 15;
constexpr int kComputeFloat32 = 68;  // true float32: no TF32
constexpr std::int32_t kTransposed = 1;

constexpr int kMatmulDescTransA = 3;
constexpr int kPreferenceMaxWorkspaceBytes = 1;
constexpr int kPreferenceMinAlignmentB = 6;
constexpr int kPreferenceMinAlignmentC = 7;
constexpr int kPreferenceMinAlignmentD = 8;

struct Algorithm {
  std::uint64_t data[8];
};
struct HeuristicResult {
  Algorithm algorithm;
  std::size_t workspace_bytes;
  Status state;
  float waves;
  int reserved[4];
};

struct Functions {
  Status (*create)(Handle*);
  Status (*destroy)(Handle);
  const char* (*status_name)(Status);
  Status (*desc_create)(MatmulDesc*, int compute_type, cudaDataType scale_type);
  Status (*desc_destroy)(MatmulDesc);
  Status (*desc_set)(MatmulDesc, int attribute, const void* value, std::size_t num_bytes);
  Status (*layout_create)(MatrixLayout*, cudaDataType type, std::uint64_t rows, std::uint64_t cols, std::int64_t ld);
  Status (*layout_destroy)(MatrixLayout);
  Status (*preference_create)(Preference*);
  Status (*preference_destroy)(Preference);
  Status (*preference_set)(Preference, int attribute, const void* value, std::size_t num_bytes);
  Status (*heuristic)(Handle, MatmulDesc, MatrixLayout a, MatrixLayout b, MatrixLayout c, MatrixLayout d, Preference,
                      int max_results, HeuristicResult* results, int* num_results);
  Status (*check)(Handle, MatmulDesc, MatrixLayout a, MatrixLayout b, MatrixLayout c, MatrixLayout d, const Algorithm*,
                  HeuristicResult* result);
  Status (*matmul)(Handle, MatmulDesc, const void* alpha, const void* a, MatrixLayout, const void* b, MatrixLayout,
                   const void* beta, const void* c, MatrixLayout, void* d, MatrixLayout, const Algorithm*,
                   void* workspace, std::size_t workspace_bytes, cudaStream_t);
};

}  // namespace paged::gpu::cublaslt

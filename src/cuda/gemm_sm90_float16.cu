// SPDX-License-Identifier: Apache-2.0
#include "cuda/gemm_sm90_launch.cuh"

namespace paged::gpu {

void gemm_sm90_float16(const GpuContext& gpu, const GemmProblem& problem) {
  problem.gated ? run_gemm_sm90<Float16, true>(gpu, problem) : run_gemm_sm90<Float16, false>(gpu, problem);
}

}  // namespace paged::gpu

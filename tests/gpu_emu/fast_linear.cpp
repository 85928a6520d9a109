// SPDX-License-Identifier: Apache-2.0
// NVIDIA's fast matrix products; their instructions are emulated for a warp of 32.
#include "gpu/gpu.h"

#if GPU_EMU_WARP == 32
#include "cuda/fast_linear.cuh"
#include "cuda/gemm_sm90_bfloat16.cu"
#include "cuda/gemm_sm90_float16.cu"
#else
#include "gpu/fast_paths.h"

namespace paged::gpu {
bool fast_linear(const ExecutionContext&, const LinearParams&) { return false; }
bool fast_gated_linear(const ExecutionContext&, const GatedLinearParams&) { return false; }
}  // namespace paged::gpu
#endif

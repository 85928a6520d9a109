// SPDX-License-Identifier: Apache-2.0
#include "gpu/gpu.h"
#if GPU_EMU_WARP == 32
#include "cuda/mma_prefill_attention.cu"
#else
#include "cuda/attention_paths.h"
namespace paged::gpu {
const FastAttention* mma_prefill_attention() { return nullptr; }
}  // namespace paged::gpu
#endif

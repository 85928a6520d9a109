// SPDX-License-Identifier: Apache-2.0
// Its instructions are emulated for a warp of 32.
#include "emulator.h"

#if GPU_EMU_WARP == 32
#include "cuda/prefill_attention_sm90.cuh"
#else
#include "cuda/attention_paths.h"

namespace paged::gpu {
const FastAttention* prefill_attention_sm90() { return nullptr; }
}  // namespace paged::gpu
#endif

// SPDX-License-Identifier: Apache-2.0
// The emulator runs the shared attention.
#include "gpu/fast_paths.h"

namespace paged::gpu {

const FastAttention* fast_decode_attention(const GpuContext&, const AttentionShape&) { return nullptr; }
const FastAttention* fast_prefill_attention(const GpuContext&, const AttentionShape&) { return nullptr; }

}  // namespace paged::gpu

// SPDX-License-Identifier: Apache-2.0
// Nothing is AMD's own yet: the shared kernels do all of it.
#include "gpu/fast_paths.h"

namespace paged::gpu {

bool fast_linear(const ExecutionContext&, const LinearParams&) { return false; }
bool fast_gated_linear(const ExecutionContext&, const GatedLinearParams&) { return false; }
const FastAttention* fast_decode_attention(const GpuContext&, const AttentionShape&) { return nullptr; }
const FastAttention* fast_prefill_attention(const GpuContext&, const AttentionShape&) { return nullptr; }

}  // namespace paged::gpu

// SPDX-License-Identifier: Apache-2.0
// NVIDIA's attention kernels, from which fast_decode_attention and fast_prefill_attention choose.
#pragma once

#include "gpu/fast_paths.h"

namespace paged::gpu {

const FastAttention* mma_decode_attention();    // sm_80 and up; 16-bit types, head sizes 64, 96, 128, 256
const FastAttention* mma_prefill_attention();   // the same shapes
const FastAttention* prefill_attention_sm90();  // wgmma and TMA

}  // namespace paged::gpu

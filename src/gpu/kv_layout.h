// SPDX-License-Identifier: Apache-2.0
// Where an element lies in a layer's KV cache on a GPU: [num_blocks][2 (K, V)][num_kv_heads][block_size][head_dim].
#pragma once

#include <cstdint>

#include "gpu/gpu.h"

namespace paged::gpu {

// Elements from the start of the layer's cache to the first slot of a piece; is_value 0 is K, 1 is V.
__host__ __device__ inline std::int64_t piece_offset(std::int64_t block, int is_value, int kv_head, int num_kv_heads,
                                                     std::int64_t piece_elements) {
  return ((block * 2 + is_value) * num_kv_heads + kv_head) * piece_elements;
}

}  // namespace paged::gpu

// SPDX-License-Identifier: Apache-2.0
// Where an element lies inside a piece of the CPU's KV cache. Keys are head-dim major, so that one vector holds the
// same component of sixteen keys and a score needs no horizontal sum: float32 and float16 [head_dim][block_size],
// bfloat16 [head_dim / 2][block_size][2] (pairs, as dpbf16 reads them). Values are [block_size][head_dim].
//
//   layer cache: block 0 | block 1 | ...     block: K head 0 | K head 1 | ... | V head 0 | V head 1 | ...
#pragma once

#include <cstdint>

#include "cpu/float16.h"
#include "cpu/inline.h"

namespace paged::cpu {

// Elements from the start of the layer's cache to the K piece (is_value 0) or V piece (1) of a head in a block.
PAGED_INLINE std::int64_t piece_offset(std::int64_t block, int is_value, int head, int num_kv_heads,
                                       std::int64_t piece_elements) {
  return ((block * 2 + is_value) * num_kv_heads + head) * piece_elements;
}

// Neighbouring components of a key that lie side by side.
template <typename T>
inline constexpr int kKeyGroup = 1;
template <>
inline constexpr int kKeyGroup<BFloat16> = 2;

template <typename T>
PAGED_INLINE std::int64_t key_offset(int slot_in_block, int d, int block_size) {
  constexpr int kGroup = kKeyGroup<T>;
  return (std::int64_t{d / kGroup} * block_size + slot_in_block) * kGroup + d % kGroup;
}

}  // namespace paged::cpu

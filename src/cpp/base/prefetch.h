// SPDX-License-Identifier: Apache-2.0
// Asks for memory before it is needed: where a loop follows pointers, the misses of several rounds then overlap.
#pragma once

#include <cstddef>

namespace paged {

// For functions that do nothing else: GCC takes them for such without effect and drops calls that are not inlined.
#define PAGED_PREFETCH [[gnu::always_inline]] inline

constexpr std::size_t kCacheLine = 64;

// Any bytes, in memory or not.
PAGED_PREFETCH void prefetch_to_write(const void* begin, std::size_t num_bytes) {
  for (std::size_t at = 0; at < num_bytes; at += kCacheLine)
    __builtin_prefetch(static_cast<const std::byte*>(begin) + at, 1);
}

}  // namespace paged

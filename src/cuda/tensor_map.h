// SPDX-License-Identifier: Apache-2.0
// How the Tensor Memory Accelerator sees a tensor: made on the host, passed to a kernel by value as
// `const __grid_constant__ TensorMap`, used through ptx_sm90.h.
#pragma once

#include <cstdint>

namespace paged::gpu {

// The driver's CUtensorMap, opaque.
struct alignas(64) TensorMap {
  std::uint64_t words[16];
};

// A tensor of 16-bit elements and the box that one copy moves. Dimension 0 is the innermost and contiguous; a
// dimension's stride is in bytes and a multiple of 16. What a box covers beyond the tensor reads as zeros and is not
// written.
struct TensorBoxes {
  const void* data;  // 16-byte aligned
  int rank;          // 1 to 5
  std::uint64_t sizes[5];
  std::uint64_t strides[5];  // strides[0] is not read
  std::uint32_t box[5];      // each at most 256
};

// Swizzled by 128 bytes: rows of box[0] * 2 == 128 bytes lie one after the other in shared memory (1024-byte aligned),
// and within each group of 8 rows the 16-byte chunk c of row r is at chunk c ^ r. What wgmma's descriptors expect.
TensorMap make_swizzled_tensor_map(const TensorBoxes& boxes);

}  // namespace paged::gpu

// SPDX-License-Identifier: Apache-2.0
// Rows of a MatrixView in kernels, and the arithmetic their launches share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "gpu/gpu.h"
#include "ops/ops.h"

namespace paged::gpu {

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Threads of a block with work for `count` of them, in whole warps of either width.
inline unsigned block_threads(std::int64_t count, std::int64_t most) {
  return static_cast<unsigned>(std::clamp<std::int64_t>(divide_up(count, 64) * 64, 64, most));
}

// Elements of 16 bytes.
template <class T>
constexpr int kVecOf = 16 / static_cast<int>(sizeof(T));

inline bool is_aligned(const void* data, std::uintptr_t bytes = 16) {
  return reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
}

// Every row is whole vectors of 16 bytes.
inline bool has_vectors(const MatrixView& view) {
  const std::int64_t vec = 16 / size_of(view.dtype);
  return is_aligned(view.data) && view.cols % vec == 0 && view.row_stride % vec == 0;
}

inline Stream stream_of(const ExecutionContext& context) { return static_cast<Stream>(context.gpu->stream); }

// A matrix as a kernel sees it.
struct Rows {
  void* data;
  std::int64_t stride;

  template <class T>
  __device__ T* row(std::int64_t index) const {
    return static_cast<T*>(data) + index * stride;
  }
};
inline Rows rows_of(const MatrixView& view) { return {view.data, view.row_stride}; }

}  // namespace paged::gpu

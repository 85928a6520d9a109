// SPDX-License-Identifier: Apache-2.0
// Shape checks the ops share. Each throws std::invalid_argument that names the op, the operand and what arrived.
#pragma once

#include <string_view>

#include "base/check.h"
#include "ops/ops.h"

namespace paged::ops {

struct Shape {
  std::int64_t rows;
  std::int64_t cols;
};

inline void check_matrix(std::string_view op, std::string_view name, const MatrixView& view, Shape shape) {
  PAGED_CHECK(view.rows == shape.rows && view.cols == shape.cols, op, ": ", name, " must be [", shape.rows, ", ",
              shape.cols, "], got [", view.rows, ", ", view.cols, "]");
  PAGED_CHECK(view.row_stride >= view.cols, op, ": ", name, " has rows of ", view.cols,
              " elements but a row stride of ", view.row_stride);
  PAGED_CHECK(view.data != nullptr || view.rows == 0 || view.cols == 0, op, ": ", name, " has no data");
}

inline void check_dtype(std::string_view op, std::string_view name, DType dtype, DType wanted) {
  PAGED_CHECK(dtype == wanted, op, ": ", name, " must be ", name_of(wanted), ", got ", name_of(dtype));
}

// Same shape and dtype as the first operand.
inline void check_like(std::string_view op, std::string_view name, const MatrixView& view, const MatrixView& first) {
  check_matrix(op, name, view, {first.rows, first.cols});
  check_dtype(op, name, view.dtype, first.dtype);
}

inline void check_cache(std::string_view op, const KvCacheView& cache) {
  PAGED_CHECK(cache.block_size >= 1 && cache.block_size <= 256 && (cache.block_size & (cache.block_size - 1)) == 0, op,
              ": block_size must be a power of two from 1 to 256, got ", cache.block_size);
  PAGED_CHECK(cache.head_dim >= 2 && cache.head_dim <= 512 && cache.head_dim % 2 == 0, op,
              ": head_dim must be even and from 2 to 512, got ", cache.head_dim);
  PAGED_CHECK(cache.num_kv_heads >= 1 && cache.num_blocks >= 1 && cache.data != nullptr, op, ": the cache has ",
              cache.num_blocks, " blocks and ", cache.num_kv_heads, " kv heads");
}

inline ThreadPool& pool_of(const ExecutionContext& context) {
  PAGED_INVARIANT(context.threads != nullptr, "an op ran on the CPU without a thread pool");
  return *context.threads;
}

}  // namespace paged::ops

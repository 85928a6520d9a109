// SPDX-License-Identifier: Apache-2.0
// A weight matrix on a GPU: row-major [rows, cols] in the activations' dtype, the parts of a linear under each other.
#pragma once

#include "base/dtype.h"
#include "gpu/runtime.h"
#include "ops/weights.h"

namespace paged::gpu {

class DeviceMatrix final : public WeightMatrix {
 public:
  DeviceMatrix(std::int64_t num_rows, std::int64_t num_cols, DType matrix_dtype)
      : WeightMatrix(num_rows, num_cols), dtype(matrix_dtype), buffer(num_rows * num_cols * size_of(matrix_dtype)) {}

  std::int64_t num_bytes() const override { return buffer.num_bytes(); }
  std::byte* data() const { return buffer.data(); }

  const DType dtype;
  DeviceBuffer buffer;
};

inline const DeviceMatrix& device_matrix(const WeightMatrix& matrix) {
  return static_cast<const DeviceMatrix&>(matrix);
}

}  // namespace paged::gpu

// SPDX-License-Identifier: Apache-2.0
// An operand of an op on both sides: on the host for the CPU backend, on the device for the GPU's.
#pragma once

#include "gpu_test.h"

namespace paged::test {

struct Layout {
  std::int64_t rows, cols;
  std::int64_t padding = 0;  // elements between rows
  std::int64_t offset = 0;   // elements before the first row

  std::int64_t stride() const { return cols + padding; }
  std::int64_t elements() const { return offset + rows * stride(); }
};

class MatrixPair {
 public:
  MatrixPair(Gpu& gpu, Random& random, const Layout& layout, DType dtype, float scale = 1.0f)
      : layout_(layout),
        dtype_(dtype),
        host_(encode(random.floats(layout.elements(), dtype, scale), dtype)),
        device_(gpu, host_) {}

  MatrixView host() { return view(host_.data()); }
  MatrixView device() const { return view(device_.data()); }

  // Both sides hold the same, also between and before the rows, where nobody writes. Tolerance 0 compares bits.
  void check(double tolerance, const char* what) const {
    const std::vector<std::byte> bytes = device_.bytes();
    if (tolerance == 0.0)
      CHECK(bytes == host_, what, ": the bits differ");
    else
      check_close(decode(bytes, dtype_), decode(host_, dtype_), tolerance, what);
  }
  std::vector<std::byte> bytes() const { return device_.bytes(); }

 private:
  MatrixView view(std::byte* data) const {
    return {data + layout_.offset * size_of(dtype_), layout_.rows, layout_.cols, layout_.stride(), dtype_};
  }

  Layout layout_;
  DType dtype_;
  std::vector<std::byte> host_;
  OnDevice device_;
};

inline constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

}  // namespace paged::test

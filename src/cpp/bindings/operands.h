// SPDX-License-Identifier: Apache-2.0
// The tensors of one call of an op: read through DLPack, checked, and kept until the call is over, for a producer may
// have made them for it alone. Needs the GIL where it is made, used and destroyed.
#pragma once

#include <pybind11/pybind11.h>

#include <deque>

#include "bindings/batch_checks.h"
#include "bindings/dlpack_tensor.h"

namespace paged::bindings {

class Operands {
 public:
  const DlpackTensor& read(pybind11::handle tensor, const char* name, Access access = Access::kRead) {
    return tensors_.emplace_back(tensor, name, access);
  }
  MatrixView in(pybind11::handle tensor, const char* name) { return read(tensor, name).matrix(); }
  MatrixView out(pybind11::handle tensor, const char* name = "out") {
    return read(tensor, name, Access::kWrite).matrix();
  }
  // Null for None.
  const float* floats(pybind11::handle tensor, const char* name, std::int64_t count) {
    if (tensor.is_none()) return nullptr;
    const DlpackTensor& values = read(tensor, name);
    check_count(values, name, count);
    return values.floats();
  }
  const std::int32_t* ints(pybind11::handle tensor, const char* name, std::int64_t count) {
    const DlpackTensor& values = read(tensor, name);
    check_count(values, name, count);
    return values.int32s();
  }
  const std::int32_t* indices(pybind11::handle tensor, const char* name, std::int64_t count, Range range) {
    const std::int32_t* values = ints(tensor, name, count);
    check_indices(name, values, count, range);
    return values;
  }

 private:
  static void check_count(const DlpackTensor& values, const char* name, std::int64_t count) {
    PAGED_CHECK(values.num_elements() == count, name, " must have ", count, " elements, got ", values.num_elements());
  }

  std::deque<DlpackTensor> tensors_;
};

}  // namespace paged::bindings

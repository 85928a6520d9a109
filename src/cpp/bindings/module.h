// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pybind11/pybind11.h>

namespace paged {

void bind_ops(pybind11::module_& module);
void bind_program(pybind11::module_& module);
void bind_gpu(pybind11::module_& module);
void bind_guide(pybind11::module_& module);
void bind_engine(pybind11::module_& module);

}  // namespace paged

// SPDX-License-Identifier: Apache-2.0
// The extension module paged._C. Each topic has a bind_*.cpp; none holds logic.
#include "bindings/module.h"

#include <pybind11/pybind11.h>

#include "base/check.h"
#include "engine/engine.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, module) {
  module.doc() = "The C++ core of paged. Use the `paged` package; what lies here may change between versions.";
  py::register_exception<paged::InternalError>(module, "InternalError", PyExc_RuntimeError).doc() =
      "A bug in paged. The engine that meets one fails and must be rebuilt.";
  py::register_exception<paged::EngineClosedError>(module, "EngineClosedError", PyExc_RuntimeError).doc() =
      "The engine was closed, or is used in a process forked from the one that made it.";
  paged::bind_ops(module);
  paged::bind_program(module);
  paged::bind_files(module);
  paged::bind_gpu(module);
  paged::bind_policy(module);
  paged::bind_engine(module);
  paged::bind_session(module);
  paged::bind_replay(module);
}

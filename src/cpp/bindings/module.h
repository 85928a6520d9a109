// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pybind11/pybind11.h>

#include "core/types.h"

namespace paged {

inline const char* name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone: return "";
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kCancelled: return "cancelled";
    case FinishReason::kError: return "error";
  }
  return "";
}

void bind_ops(pybind11::module_& module);
void bind_program(pybind11::module_& module);
void bind_files(pybind11::module_& module);
void bind_gpu(pybind11::module_& module);
void bind_guide(pybind11::module_& module);
void bind_metrics(pybind11::module_& module);
void bind_policy(pybind11::module_& module);
void bind_session(pybind11::module_& module);
void bind_replay(pybind11::module_& module);
void bind_engine(pybind11::module_& module);

}  // namespace paged

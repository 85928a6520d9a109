// SPDX-License-Identifier: Apache-2.0
// What the engine tells of itself. paged/metrics.py and paged/trace.py are what users see.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <vector>

#include "bindings/module.h"
#include "engine/engine.h"

namespace py = pybind11;

namespace paged {
namespace {

std::vector<double> step_bounds() {
  std::vector<double> bounds;
  for (std::size_t i = 0; i < StepHistogram::kNumBounds; ++i) bounds.push_back(StepHistogram::bound(i));
  return bounds;
}

void bind_stats(py::module_& module) {
  py::class_<EngineStats>(module, "EngineStats")
      .def_readonly("num_steps", &EngineStats::num_steps)
      .def_readonly("num_prefill_tokens", &EngineStats::num_prefill_tokens)
      .def_readonly("num_generated_tokens", &EngineStats::num_generated_tokens)
      .def_readonly("num_preemptions", &EngineStats::num_preemptions)
      .def_readonly("num_cached_tokens", &EngineStats::num_cached_tokens)
      .def_readonly("num_waiting", &EngineStats::num_waiting)
      .def_readonly("num_running", &EngineStats::num_running)
      .def_readonly("num_blocks", &EngineStats::num_blocks)
      .def_readonly("num_free_blocks", &EngineStats::num_free_blocks)
      .def_readonly("num_cached_blocks", &EngineStats::num_cached_blocks)
      .def_readonly("num_host_blocks", &EngineStats::num_host_blocks)
      .def_readonly("num_host_cached_blocks", &EngineStats::num_host_cached_blocks)
      .def_readonly("num_disk_blocks", &EngineStats::num_disk_blocks)
      .def_readonly("num_disk_cached_blocks", &EngineStats::num_disk_cached_blocks)
      .def_readonly("num_disk_bytes_stored", &EngineStats::num_disk_bytes_stored)
      .def_readonly("num_disk_bytes_loaded", &EngineStats::num_disk_bytes_loaded)
      .def_readonly("num_disk_errors", &EngineStats::num_disk_errors)
      .def_readonly("num_bytes_stored", &EngineStats::num_bytes_stored)
      .def_readonly("num_bytes_loaded", &EngineStats::num_bytes_loaded)
      .def_readonly("num_finished", &EngineStats::num_finished)
      .def_readonly("num_failed", &EngineStats::num_failed)
      .def_readonly("num_cancelled", &EngineStats::num_cancelled)
      .def_readonly("num_late_proposals", &EngineStats::num_late_proposals)
      .def_readonly("num_failed_proposals", &EngineStats::num_failed_proposals)
      .def_readonly("last_step_seconds", &EngineStats::last_step_seconds)
      .def_readonly("generated_tokens_per_second", &EngineStats::generated_tokens_per_second)
      .def_readonly("prefill_tokens_per_second", &EngineStats::prefill_tokens_per_second)
      .def_property_readonly("step_counts", [](const EngineStats& self) { return self.step_seconds.counts; })
      .def_property_readonly("step_seconds", [](const EngineStats& self) { return self.step_seconds.total_seconds; })
      .def_property_readonly_static("step_bounds", [](const py::object&) { return step_bounds(); });
}

py::tuple as_tuple(const StepRecord& r) {
  return py::make_tuple(r.launched, r.finished, r.num_prefill_tokens, r.num_decode_tokens, r.num_sequences,
                        r.num_waiting, r.num_free_blocks);
}

py::tuple as_tuple(const RequestRecord& r) {
  return py::make_tuple(r.id, r.submitted, r.scheduled, r.first_token, r.finished, r.num_prompt_tokens,
                        r.num_cached_tokens, r.num_generated_tokens, name_of(r.reason));
}

template <typename Record>
py::list as_list(const std::vector<Record>& records) {
  py::list list;
  for (const Record& record : records) list.append(as_tuple(record));
  return list;
}

}  // namespace

void bind_metrics(py::module_& module) {
  bind_stats(module);
  py::class_<Trace>(module, "Trace", "Records as tuples; paged.trace names their fields.")
      .def_property_readonly("steps", [](const Trace& self) { return as_list(self.steps); })
      .def_property_readonly("requests", [](const Trace& self) { return as_list(self.requests); })
      .def_readonly("num_dropped_steps", &Trace::num_dropped_steps)
      .def_readonly("num_dropped_requests", &Trace::num_dropped_requests);
}

}  // namespace paged

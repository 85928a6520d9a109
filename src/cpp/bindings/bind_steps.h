// SPDX-License-Identifier: Apache-2.0
// What every executor of a Program shows: single steps over hand-made batches, for tests and `paged inspect`.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <utility>

#include "bindings/arrays.h"
#include "bindings/batch_checks.h"
#include "exec/executor.h"

namespace paged {

// The logits of one step; run() gives them as a pointer or as a vector.
template <class Executor>
pybind11::array_t<float> run_step(Executor& executor, ArrayBatch batch) {
  const BatchView view = batch.view();
  const ExecutorLimits pool = executor.limits();
  const std::int64_t num_slots = std::int64_t{pool.num_blocks} * pool.block_size;
  check_indices("token_ids", view.token_ids, view.num_tokens, {0, executor.vocab_size()});
  check_indices("positions", view.positions, view.num_tokens, {0, pool.max_seq_len});
  check_indices("slot_mapping", view.slot_mapping, view.num_tokens, {-1, num_slots});
  check_indices("seq_lens", view.seq_lens, view.num_sequences, {0, std::int64_t{pool.max_seq_len} + 1});
  check_indices("logits_rows", view.logits_rows, view.num_logits_rows, {0, view.num_tokens});
  check_sequences(view, {pool.num_blocks, pool.block_size});
  pybind11::array_t<float> out(
      {static_cast<pybind11::ssize_t>(view.num_logits_rows), static_cast<pybind11::ssize_t>(executor.vocab_size())});
  float* to = out.mutable_data();
  const auto size = static_cast<std::size_t>(out.size());
  {
    const pybind11::gil_scoped_release release;
    const auto logits = executor.run(view);
    if (size > 0) std::copy_n(&logits[0], size, to);
  }
  return out;
}

template <class Executor>
void bind_steps(pybind11::classh<Executor>& executor) {
  namespace py = pybind11;
  executor
      .def(
          "run",
          [](Executor& self, Int32Array token_ids, Int32Array positions, Int32Array slot_mapping,
             Int32Array query_start, Int32Array seq_lens, Int32Array block_tables, Int32Array logits_rows) {
            return run_step(
                self, {std::move(token_ids), std::move(positions), std::move(slot_mapping), std::move(query_start),
                       std::move(seq_lens), std::move(block_tables), std::move(logits_rows)});
          },
          py::kw_only(), py::arg("token_ids"), py::arg("positions"), py::arg("slot_mapping"), py::arg("query_start"),
          py::arg("seq_lens"), py::arg("block_tables"), py::arg("logits_rows"),
          "One step over hand-made int32 arrays; block_tables is [num_sequences, max_blocks]. Returns float32 logits "
          "[len(logits_rows), vocab_size].")
      .def("set_profiling", &Executor::set_profiling, py::arg("enabled"))
      .def_property_readonly("op_seconds", &Executor::op_seconds)
      .def_property_readonly("kv_cache_bytes", &Executor::kv_cache_bytes)
      .def_property_readonly("workspace_bytes", &Executor::workspace_bytes);
}

}  // namespace paged

// SPDX-License-Identifier: Apache-2.0
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "base/check.h"
#include "bindings/gil_release.h"
#include "bindings/module.h"
#include "sim/replay.h"

namespace py = pybind11;

namespace paged {
namespace {

using Doubles = py::array_t<double, py::array::c_style | py::array::forcecast>;
using Int64s = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

std::int32_t int32_from(double value) {
  constexpr double kLimit = 2147483647.0;
  PAGED_CHECK(value >= -kLimit && value <= kLimit, "a count in a trace must fit into 32 bits, got ", value);
  return static_cast<std::int32_t>(value);
}

// agents: [n, 4] is_root, prefix, num_prefix_tokens, num_turns; turns: [sum of num_turns, 7] in the order of the
// fields.
std::vector<ReplayAgent> agents_from(const Int64s& agents, const Doubles& turns) {
  PAGED_CHECK(agents.ndim() == 2 && agents.shape(1) == 4, "agents must be [n, 4]");
  PAGED_CHECK(turns.ndim() == 2 && turns.shape(1) == 7, "turns must be [n, 7]");
  const auto agent = agents.unchecked<2>();
  const auto turn = turns.unchecked<2>();
  std::vector<ReplayAgent> result;
  py::ssize_t next = 0;
  const auto integer = [&](py::ssize_t field) { return int32_from(turn(next, field)); };
  for (py::ssize_t i = 0; i < agent.shape(0); ++i) {
    ReplayAgent& added = result.emplace_back();
    added.is_root = agent(i, 0) != 0;
    added.prefix = int32_from(static_cast<double>(agent(i, 1)));
    added.num_prefix_tokens = int32_from(static_cast<double>(agent(i, 2)));
    PAGED_CHECK(agent(i, 3) > 0 && agent(i, 3) <= turn.shape(0) - next, "agent ", i, " has ", agent(i, 3),
                " turns, and ", turn.shape(0) - next, " are left");
    for (std::int64_t left = agent(i, 3); left > 0; --left, ++next) {
      added.turns.push_back({integer(0), integer(1), integer(2), turn(next, 3), turn(next, 4), integer(5), integer(6)});
    }
  }
  return result;
}

ReplayResult run(const Int64s& agents, const Doubles& turns, ReplayConfig config, const std::string& policy,
                 double ttl_seconds) {
  const std::vector<ReplayAgent> spec = agents_from(agents, turns);
  config.policy = make_policy(policy, ttl_seconds);
  const GilRelease release;
  return replay(spec, config);
}

py::array_t<double> array_of(const std::vector<double>& values) {
  return py::array_t<double>(static_cast<py::ssize_t>(values.size()), values.data());
}

}  // namespace

void bind_replay(py::module_& module) {
  py::class_<ReplayConfig>(module, "ReplayConfig")
      .def(py::init<>())
      .def_readwrite("num_blocks", &ReplayConfig::num_blocks)
      .def_readwrite("block_size", &ReplayConfig::block_size)
      .def_readwrite("max_num_sequences", &ReplayConfig::max_num_sequences)
      .def_readwrite("max_num_batched_tokens", &ReplayConfig::max_num_batched_tokens)
      .def_readwrite("max_model_len", &ReplayConfig::max_model_len)
      .def_readwrite("max_wait_steps", &ReplayConfig::max_wait_steps)
      .def_readwrite("num_slots", &ReplayConfig::num_slots)
      .def_readwrite("stagger", &ReplayConfig::stagger)
      .def_readwrite("uses_sessions", &ReplayConfig::uses_sessions)
      .def_readwrite("tells_tools", &ReplayConfig::tells_tools)
      .def_readwrite("burst_every", &ReplayConfig::burst_every)
      .def_readwrite("num_host_blocks", &ReplayConfig::num_host_blocks)
      .def_readwrite("num_disk_blocks", &ReplayConfig::num_disk_blocks)
      .def(
          "set_device",
          [](ReplayConfig& self, double base, double per_token, double per_token_pair, double decode_base,
             double per_decoded_context_token) {
            self.device = {base, {per_token, per_token_pair}, decode_base, per_decoded_context_token};
          },
          py::kw_only(), py::arg("base"), py::arg("per_token"), py::arg("per_token_pair"), py::arg("decode_base"),
          py::arg("per_decoded_context_token"))
      .def(
          "set_link",
          [](ReplayConfig& self, double per_transfer, double per_block) { self.link = {per_transfer, per_block}; },
          py::kw_only(), py::arg("per_transfer"), py::arg("per_block"))
      .def(
          "set_disk",
          [](ReplayConfig& self, double per_transfer, double per_block_read, double per_block_written) {
            self.disk = {per_transfer, per_block_read, per_block_written};
          },
          py::kw_only(), py::arg("per_transfer"), py::arg("per_block_read"), py::arg("per_block_written"));
  py::class_<ReplayResult>(module, "ReplayResult")
      .def_property_readonly("job_seconds", [](const ReplayResult& self) { return array_of(self.job_seconds); })
      .def_property_readonly("least_seconds", [](const ReplayResult& self) { return array_of(self.least_seconds); })
      .def_property_readonly("resume_seconds", [](const ReplayResult& self) { return array_of(self.resume_seconds); })
      .def_readonly("num_prefill_tokens", &ReplayResult::num_prefill_tokens)
      .def_readonly("num_new_tokens", &ReplayResult::num_new_tokens)
      .def_readonly("num_evicted_tokens", &ReplayResult::num_evicted_tokens)
      .def_readonly("num_expired_tokens", &ReplayResult::num_expired_tokens)
      .def_readonly("num_preemptions", &ReplayResult::num_preemptions)
      .def_readonly("num_stored_blocks", &ReplayResult::num_stored_blocks)
      .def_readonly("num_loaded_blocks", &ReplayResult::num_loaded_blocks)
      .def_readonly("num_blocks_to_disk", &ReplayResult::num_blocks_to_disk)
      .def_readonly("num_blocks_from_disk", &ReplayResult::num_blocks_from_disk)
      .def_readonly("link_busy_seconds", &ReplayResult::link_busy_seconds)
      .def_readonly("disk_busy_seconds", &ReplayResult::disk_busy_seconds)
      .def_readonly("seconds", &ReplayResult::seconds)
      .def_readonly("busy_seconds", &ReplayResult::busy_seconds)
      .def_readonly("mean_live_tokens", &ReplayResult::mean_live_tokens);
  module.def("replay", &run, py::kw_only(), py::arg("agents"), py::arg("turns"), py::arg("config"), py::arg("policy"),
             py::arg("ttl_seconds") = 2.0,
             "Agents against the real core on a virtual clock: see src/cpp/sim/replay.h for the columns.");
}

}  // namespace paged

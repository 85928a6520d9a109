// SPDX-License-Identifier: Apache-2.0
// Policies written in Python: questions of the engine, and proposals that answer them. paged/policy.py is what users
// see.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <tuple>

#include "base/check.h"
#include "bindings/gil_release.h"
#include "bindings/module.h"
#include "bindings/session_names.h"
#include "engine/policy_desk.h"

namespace py = pybind11;

namespace paged {
namespace {

const char* name_of(SessionEvent event) {
  switch (event) {
    case SessionEvent::kPaused: return "paused";
    case SessionEvent::kReturned: return "returned";
    case SessionEvent::kClosed: return "closed";
  }
  return "";
}

Tier tier_of(const std::string& name) {
  if (name == "device") return Tier::kDevice;
  if (name == "host") return Tier::kHost;
  if (name == "disk") return Tier::kDisk;
  PAGED_CHECK(name == "nowhere", "a session is placed on the device, on the host, on the disk or nowhere, got ", name);
  return Tier::kNowhere;
}

py::dict as_dict(const SessionView& view) {
  py::dict result;
  result["id"] = view.id;
  result["tenant"] = view.tenant;
  result["state"] = name_of(view.state);
  result["tool"] = view.tool;
  result["since"] = view.since;
  result["expect"] = py::tuple(py::cast(view.expectation.quantiles));
  result["weight"] = view.weight;
  result["num_tokens"] = view.num_tokens;
  result["num_resident_tokens"] = view.num_resident_tokens;
  return result;
}

// (event or None, a ticket for the answer, the session, the pressure)
using Ticket = std::tuple<SessionId, std::int64_t, double, double>;

py::tuple as_tuple(const PolicyQuestion& question) {
  py::object event = py::none();
  if (question.event) event = py::str(name_of(*question.event));
  py::dict pressure;
  pressure["num_blocks"] = question.pressure.num_blocks;
  pressure["block_size"] = question.pressure.block_size;
  pressure["seconds_per_token"] = question.pressure.cost.per_token;
  const SessionView& view = question.view;
  return py::make_tuple(event, Ticket(view.id, view.revision, view.since, question.asked_at), as_dict(view), pressure);
}

py::list wait(PolicyDesk& desk) {
  std::vector<PolicyQuestion> questions;
  {
    const GilRelease release;
    questions = desk.wait();
  }
  py::list result;
  for (const PolicyQuestion& question : questions) result.append(as_tuple(question));
  return result;
}

void propose(PolicyDesk& desk, const Ticket& ticket, const std::optional<std::tuple<double, bool, double>>& score,
             const std::optional<std::string>& tier, std::optional<bool> admits) {
  const auto [id, revision, since, asked_at] = ticket;
  Proposal proposal{id, revision, since};
  if (score) {
    const auto [value, hold, valid_for] = *score;
    PAGED_CHECK(!std::isnan(value) && valid_for > 0.0,
                "a score is a number that is valid for more than 0 seconds, got ", value, " for ", valid_for);
    proposal.score = Score{false, value, hold, valid_for};
  }
  if (tier) proposal.tier = tier_of(*tier);
  proposal.admits = admits;
  const GilRelease release;
  desk.propose(std::move(proposal), asked_at);
}

}  // namespace

void bind_policy(py::module_& module) {
  py::class_<PolicyDesk, std::shared_ptr<PolicyDesk>>(module, "PolicyDesk",
                                                      "Questions for a policy, and its proposals. Of one engine.")
      .def(py::init<const std::string&, double>(), py::arg("fallback"), py::arg("patience"))
      .def("wait", &wait,
           "Blocks until there are questions: (event or None, ticket, session, pressure). An empty list: the engine "
           "is "
           "closed.")
      .def("propose", &propose, py::arg("ticket"), py::arg("score"), py::arg("tier"), py::arg("admits"),
           "score: (value, hold, seconds that it is valid for). None: what the fallback says.")
      .def("close", &PolicyDesk::close, py::call_guard<GilRelease>(), "As the end of its engine does.")
      .def("count_failed", &PolicyDesk::count_failed, py::call_guard<GilRelease>())
      .def_property_readonly("num_late", py::cpp_function(&PolicyDesk::num_late, py::call_guard<GilRelease>()))
      .def_property_readonly("num_failed", py::cpp_function(&PolicyDesk::num_failed, py::call_guard<GilRelease>()));
}

}  // namespace paged

// SPDX-License-Identifier: Apache-2.0
// Commands of sessions. Each runs on the engine thread between two steps and is waited for without the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "bindings/gil_release.h"
#include "bindings/module.h"
#include "bindings/session_names.h"
#include "engine/engine.h"

namespace py = pybind11;

namespace paged {
namespace {

const char* name_of(ReceiptStatus status) {
  switch (status) {
    case ReceiptStatus::kAccepted: return "accepted";
    case ReceiptStatus::kClipped: return "clipped";
    case ReceiptStatus::kDeferred: return "deferred";
    case ReceiptStatus::kRejected: return "rejected";
  }
  return "";
}

const char* name_of(MissCause cause) {
  switch (cause) {
    case MissCause::kUnreadable: return "unreadable";
    case MissCause::kEvicted: return "evicted";
    case MissCause::kExpired: return "expired";
    case MissCause::kEdited: return "edited";
  }
  return "";
}

template <typename Result, typename Function>
Result ask(Engine& engine, const Function& function) {
  Result result = {};
  const GilRelease release;
  engine.run_between_steps([&](Scheduler& scheduler) { result = function(scheduler); });
  return result;
}

// (status, blocks, until, reason)
template <typename Function>
py::tuple receipt(Engine& engine, const Function& function) {
  const auto given = ask<Receipt>(engine, [&](Scheduler& scheduler) { return function(scheduler.sessions()); });
  return py::make_tuple(name_of(given.status), given.num_blocks, given.until, given.reason);
}

SessionId open_session(Engine& engine, const std::string& tenant, double weight) {
  return ask<SessionId>(engine, [&](Scheduler& scheduler) { return scheduler.open_session({tenant, weight}); });
}

SessionId fork_session(Engine& engine, SessionId parent, std::optional<double> weight) {
  return ask<SessionId>(engine, [&](Scheduler& scheduler) { return scheduler.fork_session(parent, weight); });
}

py::dict report(Engine& engine, SessionId id) {
  const auto told = ask<SessionReport>(engine, [&](Scheduler& scheduler) { return scheduler.sessions().report(id); });
  py::list misses;
  for (const Miss& miss : told.misses)
    misses.append(py::make_tuple(miss.turn, name_of(miss.cause), miss.num_tokens, miss.by));
  py::dict result;
  result["state"] = name_of(told.view.state);
  result["tool"] = told.view.tool;
  result["since"] = told.view.since;
  result["num_resident_blocks"] = told.num_resident_blocks;
  result["num_device_blocks"] = told.residency.num_on_device;
  result["num_host_blocks"] = told.residency.num_on_host;
  result["num_disk_blocks"] = told.residency.num_on_disk;
  result["num_charged_blocks"] = told.num_charged_blocks;
  result["is_held"] = told.is_held;
  result["num_leased_blocks"] = told.num_leased_blocks;
  result["lease_left"] = told.lease_left;
  result["expected_in"] = told.expected_in;
  result["num_turns"] = told.num_turns;
  result["num_computed_tokens"] = told.num_computed_tokens;
  result["num_reused_tokens"] = told.num_reused_tokens;
  result["misses"] = misses;
  return result;
}

std::vector<TokenId> session_tokens(Engine& engine, SessionId id) {
  return ask<std::vector<TokenId>>(engine, [&](Scheduler& scheduler) {
    const Session* session = scheduler.sessions().find(id);
    return session == nullptr ? std::vector<TokenId>() : session->tokens;
  });
}

std::size_t session_length(Engine& engine, SessionId id) {
  return ask<std::size_t>(engine, [&](Scheduler& scheduler) {
    const Session* session = scheduler.sessions().find(id);
    return session == nullptr ? 0 : session->tokens.size();
  });
}

// Bytes of a block and the name of their order; (0, "") where they cannot be moved.
py::tuple block_layout(Engine& engine) {
  std::pair<std::int64_t, std::string> told;
  told = ask<decltype(told)>(engine, [&](Scheduler&) {
    KvBlocks* blocks = engine.kv_blocks();
    return blocks == nullptr ? decltype(told)() : decltype(told)(blocks->block_bytes(), blocks->layout());
  });
  return py::make_tuple(told.first, told.second);
}

// The block of the session's tokens [index * block_size, (index + 1) * block_size), if it is there.
std::optional<py::bytes> read_block(Engine& engine, SessionId id, std::int32_t index) {
  const auto read = ask<std::optional<std::string>>(engine, [&](Scheduler& scheduler) -> std::optional<std::string> {
    const Session* session = scheduler.sessions().find(id);
    const OwnerTable& owners = scheduler.blocks().owners();
    KvBlocks* blocks = engine.kv_blocks();
    if (session == nullptr || blocks == nullptr || index < 0 || index >= owners.path_size(session->slot))
      return std::nullopt;
    std::string bytes(static_cast<std::size_t>(blocks->block_bytes()), '\0');
    blocks->read(owners.block_at(session->slot, index), reinterpret_cast<std::byte*>(bytes.data()));
    return bytes;
  });
  return read ? std::optional<py::bytes>(*read) : std::nullopt;
}

SessionId restore_session(Engine& engine, const std::string& tenant, double weight, std::vector<TokenId> tokens) {
  for (const TokenId token : tokens)
    PAGED_CHECK(token >= 0 && token < engine.guide_desk()->vocab_size(), "token ids are in [0, ",
                engine.guide_desk()->vocab_size(), "), got ", token);
  return ask<SessionId>(
      engine, [&](Scheduler& scheduler) { return scheduler.sessions().restore({tenant, weight}, std::move(tokens)); });
}

bool write_block(Engine& engine, SessionId id, const py::bytes& given) {
  const auto bytes = static_cast<std::string_view>(given);
  return ask<bool>(engine, [&](Scheduler& scheduler) {
    KvBlocks* blocks = engine.kv_blocks();
    PAGED_CHECK(blocks != nullptr && std::cmp_equal(bytes.size(), blocks->block_bytes()), "a block has ",
                blocks == nullptr ? 0 : blocks->block_bytes(), " bytes, got ", bytes.size());
    return scheduler.sessions().add_block(
        id, [&](BlockId block) { blocks->write(block, reinterpret_cast<const std::byte*>(bytes.data())); });
  });
}

void drop_session(Engine& engine, SessionId id) {
  const GilRelease release;
  engine.run_some_time([id](Scheduler& scheduler) { scheduler.sessions().close(id); });
}

py::tuple close_session(Engine& engine, SessionId id) {
  return receipt(engine, [&](SessionTable& table) { return table.close(id); });
}

py::tuple pause(Engine& engine, SessionId id, const std::string& tool,
                const std::vector<std::pair<double, double>>& quantiles) {
  return receipt(engine, [&](SessionTable& table) { return table.pause(id, tool, {quantiles}); });
}

py::tuple progress(Engine& engine, SessionId id, double share) {
  return receipt(engine, [&](SessionTable& table) { return table.progress(id, share); });
}

py::tuple eta(Engine& engine, SessionId id, double seconds) {
  return receipt(engine, [&](SessionTable& table) { return table.eta(id, seconds); });
}

py::tuple rewind(Engine& engine, SessionId id, std::int32_t num_tokens, std::int32_t num_again) {
  return receipt(engine, [&](SessionTable& table) { return table.rewind(id, num_tokens, num_again); });
}

py::tuple pin(Engine& engine, SessionId id, double seconds, std::optional<std::int32_t> num_blocks) {
  return receipt(engine, [&](SessionTable& table) { return table.pin(id, seconds, num_blocks); });
}

py::tuple set_floor(Engine& engine, const std::string& tenant, std::int32_t num_blocks) {
  return receipt(engine, [&](SessionTable& table) { return table.set_floor(tenant, num_blocks); });
}

py::list tenants(Engine& engine) {
  using Accounts = std::vector<TenantLedger::Account>;
  const auto told = ask<Accounts>(engine, [&](Scheduler& scheduler) {
    Accounts accounts;
    scheduler.blocks().tenants().for_each([&](const TenantLedger::Account& each) { accounts.push_back(each); });
    return accounts;
  });
  py::list result;
  for (const TenantLedger::Account& each : told)
    result.append(py::make_tuple(each.name, each.num_sessions, each.floor, each.num_owned));
  return result;
}

py::tuple demote(Engine& engine, SessionId id, const std::string& tier) {
  PAGED_CHECK(tier == "host" || tier == "disk", "tier takes 'host' or 'disk', got '", tier, "'");
  const Tier to = tier == "host" ? Tier::kHost : Tier::kDisk;
  return receipt(engine, [&](SessionTable& table) { return table.demote(id, to); });
}

py::tuple prefetch(Engine& engine, SessionId id) {
  return receipt(engine, [&](SessionTable& table) { return table.prefetch(id); });
}

}  // namespace

void bind_session(py::module_& module) {
  const auto engine = py::arg("engine");
  const auto id = py::arg("id");
  module.def("session_open", &open_session, engine, py::arg("tenant"), py::arg("weight"));
  module.def("session_fork", &fork_session, engine, id, py::arg("weight") = py::none(),
             "0: it is closed, or its turn runs. weight: None: the parent's.");
  module.def("session_close", &close_session, engine, id, "Receipts are (status, blocks, until, reason).");
  module.def("session_drop", &drop_session, engine, id, "Closes it some time, without waiting for it.");
  module.def("session_pause", &pause, engine, id, py::arg("tool"), py::arg("quantiles"));
  module.def("session_progress", &progress, engine, id, py::arg("share"));
  module.def("session_eta", &eta, engine, id, py::arg("seconds"));
  module.def(
      "session_rewind", &rewind, engine, id, py::arg("num_tokens"), py::arg("num_again") = 0,
      "num_again: of the tokens behind those, as many from the end on come again in the next turn: it is an edit.");
  module.def("session_pin", &pin, engine, id, py::arg("seconds"), py::arg("num_blocks") = py::none(),
             "num_blocks: None: as many as it has.");
  module.def("session_demote", &demote, engine, id, py::arg("tier"), "host or disk");
  module.def("session_prefetch", &prefetch, engine, id);
  module.def("session_report", &report, engine, id);
  module.def("session_restore", &restore_session, engine, py::arg("tenant"), py::arg("weight"), py::arg("tokens"));
  module.def("block_layout", &block_layout, engine, "Bytes of a block, and the name of their order; 0: none to move.");
  module.def("session_read_block", &read_block, engine, id, py::arg("index"), "None: it is not there.");
  module.def("session_write_block", &write_block, engine, id, py::arg("bytes"),
             "The one behind those that are there. False: there is no room for it, or it would not be full.");
  module.def("session_tokens", &session_tokens, engine, id, "As they stood after its last turn.");
  module.def("session_length", &session_length, engine, id);
  module.def("set_tenant_floor", &set_floor, engine, py::arg("tenant"), py::arg("num_blocks"), "A receipt.");
  module.def("tenants", &tenants, engine, "(name, sessions, blocks of its floor, blocks that it owns) of each.");
}

}  // namespace paged

// SPDX-License-Identifier: Apache-2.0
// The part of the session table that takes commands: what is announced, changed and given up.
#include <algorithm>
#include <string>
#include <utility>

#include "core/session_table.h"

namespace paged {
namespace {

constexpr double kLongest = 1e9;  // seconds that anybody may expect

Receipt rejected(std::string reason) { return {ReceiptStatus::kRejected, 0, 0.0, std::move(reason)}; }

const char* name_of(Tier tier) { return tier == Tier::kHost ? "host" : "disk"; }

Receipt unknown(SessionId id) { return rejected("session " + std::to_string(id) + " is closed"); }

}  // namespace

Receipt SessionTable::close(SessionId id) {
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) return unknown(id);
  Session& session = *found->second;
  const std::int32_t num_blocks = blocks_.owners().path_size(session.slot);
  if (has_turn(session)) {
    session.is_closing = true;
    return {ReceiptStatus::kDeferred, num_blocks, 0.0, "its turn runs"};
  }
  policy_->on_event(SessionEvent::kClosed, view_of(session));
  drop(session);
  return {ReceiptStatus::kAccepted, num_blocks};
}

Receipt SessionTable::pause(SessionId id, std::string tool, Expectation expectation) {
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) return unknown(id);
  Session& session = *found->second;
  const std::int32_t num_blocks = blocks_.owners().path_size(session.slot);
  for (const auto& [share, seconds] : expectation.quantiles)
    if (!(share > 0.0 && share < 1.0 && seconds >= 0.0 && seconds <= kLongest))
      return rejected("what is expected are shares in (0, 1) and seconds from 0 to 1e9");
  if (has_turn(session)) {
    session.next_pause = {std::move(tool), std::move(expectation)};
    return {ReceiptStatus::kDeferred, num_blocks, 0.0, "when its turn has ended"};
  }
  begin_pause(session, {std::move(tool), std::move(expectation)});
  const bool stays = policy_->place(view_of(session), blocks_.pressure()) == Tier::kDevice;
  return {ReceiptStatus::kAccepted, num_blocks, 0.0, stays ? "its blocks are held" : "its blocks may be evicted"};
}

void SessionTable::begin_pause(Session& session, Pause pause) {
  blocks_.cancel_prefetch(session.id);
  session.tool = std::move(pause.tool);
  session.expectation = std::move(pause.expectation);
  session.state = SessionState::kPaused;
  session.state_since = now_;
  policy_->on_event(SessionEvent::kPaused, view_of(session));
  changed(session);
}

Session* SessionTable::waiting_for_tool(SessionId id, Receipt& receipt) {
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) {
    receipt = unknown(id);
    return nullptr;
  }
  if (found->second->state != SessionState::kPaused) {
    receipt = rejected("it does not wait for a tool");
    return nullptr;
  }
  receipt = {ReceiptStatus::kAccepted, blocks_.owners().path_size(found->second->slot)};
  return found->second.get();
}

Receipt SessionTable::progress(SessionId id, double share) {
  Receipt receipt;
  Session* session = waiting_for_tool(id, receipt);
  if (session == nullptr) return receipt;
  if (!(share > 0.0 && share <= 1.0)) return rejected("progress is a share in (0, 1]");
  session->expectation.quantiles = {{0.5, std::max((now_ - session->state_since) / share, 1e-3)}};
  signalled(*session);
  return receipt;
}

Receipt SessionTable::eta(SessionId id, double seconds) {
  Receipt receipt;
  Session* session = waiting_for_tool(id, receipt);
  if (session == nullptr) return receipt;
  if (!(seconds >= 0.0 && seconds <= kLongest)) return rejected("an eta is 0 to 1e9 seconds");
  session->expectation.quantiles = {{0.5, std::max(now_ - session->state_since + seconds, 1e-3)}};
  signalled(*session);
  return receipt;
}

// It is expected back at another time: what was fetched for it may have no hurry now.
void SessionTable::signalled(Session& session) {
  const double expected_at = now_ + session.score.expected_in;
  changed(session);
  if (!session.score.hold && now_ + session.score.expected_in > expected_at) blocks_.cancel_prefetch(session.id);
}

// Null, and the receipt says why, unless it is there to be changed.
Session* SessionTable::between_turns(SessionId id, Receipt& receipt) {
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) {
    receipt = unknown(id);
    return nullptr;
  }
  if (has_turn(*found->second)) {
    receipt = rejected("its turn has not ended");
    return nullptr;
  }
  return found->second.get();
}

Receipt SessionTable::rewind(SessionId id, std::int32_t num_tokens, std::int32_t num_again) {
  Receipt receipt;
  Session* const found = between_turns(id, receipt);
  if (found == nullptr) return receipt;
  Session& session = *found;
  const auto length = static_cast<std::int32_t>(session.tokens.size());
  if (num_tokens < 0 || num_tokens > length)
    return rejected("it has " + std::to_string(length) + " tokens, cannot go back to " + std::to_string(num_tokens));
  if (num_again < 0 || num_again > length - num_tokens)
    return rejected("behind its first " + std::to_string(num_tokens) + " of " + std::to_string(length) +
                    " tokens do not come " + std::to_string(num_again));
  session.num_edited_tokens = std::max(0, session.num_known_tokens - (length - num_again));
  blocks_.cancel_prefetch(id);
  const std::int32_t num_before = blocks_.owners().path_size(session.slot);
  session.tokens.resize(static_cast<std::size_t>(num_tokens));
  session.num_known_tokens = std::min(session.num_known_tokens, num_tokens);
  blocks_.truncate_owner(session.slot, num_tokens / blocks_.pressure().block_size);
  changed(session);
  return {ReceiptStatus::kAccepted, num_before - blocks_.owners().path_size(session.slot)};
}

Receipt SessionTable::pin(SessionId id, double seconds, std::optional<std::int32_t> num_blocks) {
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) return unknown(id);
  Session& session = *found->second;
  const std::int32_t wanted = num_blocks.value_or(blocks_.owners().path_size(session.slot));
  if (wanted <= 0) return rejected(num_blocks ? "the budget holds no block" : "it has no block yet");
  const std::int32_t most = blocks_.num_leasable_blocks() + blocks_.lease(session.slot);
  if (most == 0) return rejected("all that may be leased is: leases leave what one step may need");
  const std::int32_t given = std::min(wanted, most);
  blocks_.set_lease(session.slot, given);
  session.lease_until = now_ + seconds;
  renew_score(session);
  Receipt receipt{ReceiptStatus::kAccepted, given, session.lease_until};
  if (given < wanted) {
    receipt.status = ReceiptStatus::kClipped;
    receipt.reason =
        "wanted are " + std::to_string(wanted) + " blocks; all leases together leave what one step may need";
  }
  return receipt;
}

Receipt SessionTable::demote(SessionId id, Tier tier) {
  Receipt receipt;
  Session* const session = between_turns(id, receipt);
  if (session == nullptr) return receipt;
  const std::string name = name_of(tier);
  const Pressure& pressure = blocks_.pressure();
  if ((tier == Tier::kHost ? pressure.num_host_blocks : pressure.num_disk_blocks) == 0)
    return rejected("there is no " + name + " tier: set " + name + "_cache");
  blocks_.cancel_prefetch(id);
  session->demoted_to = tier;
  const StoredPath stored = store(*session, tier);
  renew_score(*session);
  if (stored.num_stored == stored.num_found) return {ReceiptStatus::kAccepted, stored.num_stored};
  const bool failed = tier == Tier::kDisk && !blocks_.write_error().empty();
  return {ReceiptStatus::kClipped, stored.num_stored, 0.0,
          "it has " + std::to_string(stored.num_found) + " blocks; " +
              (failed ? "the disk tier takes no more since it failed: " + blocks_.write_error()
                      : "transfers leave what running requests need")};
}

Receipt SessionTable::prefetch(SessionId id) {
  Receipt receipt;
  Session* const found = between_turns(id, receipt);
  if (found == nullptr) return receipt;
  Session& session = *found;
  if (blocks_.pressure().num_host_blocks == 0 && blocks_.pressure().num_disk_blocks == 0)
    return rejected("there is no tier below the device: set host_cache or disk_cache");
  session.demoted_to = Tier::kDevice;
  const ContentId root = blocks_.acquire_root(session.spec.tenant);
  const std::int32_t num_fetched = blocks_.prefetch(session.slot, id, root, session.tokens);
  const std::int32_t num_left = blocks_.num_loadable(session.slot, root, session.tokens) - num_fetched;
  blocks_.release_root(root);
  if (num_fetched > 0) fetching_.push_back(id);
  renew_score(session);
  if (num_left <= 0) return {ReceiptStatus::kAccepted, num_fetched};
  return {num_fetched > 0 ? ReceiptStatus::kClipped : ReceiptStatus::kRejected, num_fetched, 0.0,
          std::to_string(num_left) + " blocks stay where they are: the rest of the device is held or in use"};
}

// What was loaded for a turn that waits is its session's, lest it go again before the turn begins.
void SessionTable::transfer_finished(SessionId loaded_for) {
  const auto waiting = sessions_.find(loaded_for);
  if (waiting != sessions_.end() && has_turn(*waiting->second) && waiting->second->state != SessionState::kRunning)
    adopt(*waiting->second);
  for (const SessionId id : std::exchange(fetching_, {})) {
    const auto found = sessions_.find(id);
    if (found == sessions_.end() || has_turn(*found->second)) continue;
    Session& session = *found->second;
    adopt(session);
    if (blocks_.is_loading(id)) fetching_.push_back(id);
  }
}

void SessionTable::adopt(Session& session) {
  const ContentId root = blocks_.acquire_root(session.spec.tenant);
  blocks_.adopt(session.slot, root, session.tokens);
  blocks_.release_root(root);
  renew_score(session);
}

Receipt SessionTable::set_floor(const std::string& tenant, std::int32_t num_blocks) {
  if (num_blocks < 0) return rejected("a floor is at least 0");
  const std::int32_t given = blocks_.set_floor(tenant, num_blocks);
  if (given == num_blocks) return {ReceiptStatus::kAccepted, given};
  if (given == BlockManager::kNoRoom)
    return rejected(std::to_string(BlockManager::kMaxFloors) + " tenants have floors already");
  return {given > 0 ? ReceiptStatus::kClipped : ReceiptStatus::kRejected, given, 0.0,
          "wanted are " + std::to_string(num_blocks) +
              " blocks; all floors together leave what a sequence of max_model_len may need"};
}

}  // namespace paged

// SPDX-License-Identifier: Apache-2.0
#include "core/session_table.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/check.h"

namespace paged {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kLeastSeconds = 1e-3;  // between two scores
constexpr double kWaitPerService = 10.0;

}  // namespace

SessionTable::SessionTable(BlockManager& blocks, std::shared_ptr<Policy> policy)
    : blocks_(blocks), policy_(std::move(policy)) {
  blocks_.set_on_eviction([this](const Eviction& eviction) { evicted(eviction); });
  blocks_.set_on_unreadable([this](SessionId id, std::int32_t num_blocks) { unreadable(id, num_blocks); });
}

SessionId SessionTable::open(SessionSpec spec) {
  PAGED_CHECK(spec.weight > 0.0 && std::isfinite(spec.weight), "a session's weight is above 0, got ", spec.weight);
  auto session = std::make_unique<Session>();
  session->id = ++last_id_;
  session->spec = std::move(spec);
  session->state_since = now_;
  session->next_score = kNever;
  if (unused_slots_.empty()) {
    unused_slots_.push_back(static_cast<OwnerSlot>(slots_.size()));
    slots_.push_back(nullptr);
  }
  session->slot = unused_slots_.back();
  unused_slots_.pop_back();
  slots_[static_cast<std::size_t>(session->slot)] = session.get();
  blocks_.open_owner(session->slot, session->spec.tenant);
  return sessions_.emplace(last_id_, std::move(session)).first->first;
}

SessionId SessionTable::fork(SessionId parent, std::optional<double> weight) {
  const auto found = sessions_.find(parent);
  if (found == sessions_.end() || has_turn(*found->second)) return 0;
  Session* source = found->second.get();
  SessionSpec spec = source->spec;
  spec.weight = weight.value_or(spec.weight);
  const SessionId id = open(std::move(spec));
  Session& child = at(id);
  child.tokens = source->tokens;
  child.num_known_tokens = source->num_known_tokens;
  blocks_.share_owner(source->slot, child.slot);
  changed(child);
  if (source->state == SessionState::kIdle) enter(*source, SessionState::kIdle);
  return id;
}

SessionId SessionTable::restore(SessionSpec spec, std::vector<TokenId> tokens) {
  const SessionId id = open(std::move(spec));
  at(id).tokens = std::move(tokens);
  return id;
}

bool SessionTable::add_block(SessionId id, const std::function<void(BlockId)>& fill) {
  const auto found = sessions_.find(id);
  if (found == sessions_.end() || has_turn(*found->second)) return false;
  Session& session = *found->second;
  const auto size = static_cast<std::size_t>(blocks_.pressure().block_size);
  const std::size_t begin = static_cast<std::size_t>(blocks_.owners().path_size(session.slot)) * size;
  if (begin + size > session.tokens.size()) return false;
  const ContentId root = blocks_.acquire_root(session.spec.tenant);
  const auto tokens = std::span(session.tokens).subspan(begin, size);
  bool added = false;
  try {
    added = blocks_.append_to_path(session.slot, root, tokens, fill);
  } catch (...) {
    blocks_.release_root(root);
    throw;
  }
  blocks_.release_root(root);
  if (!added) return false;
  session.num_known_tokens = std::max(session.num_known_tokens, static_cast<std::int32_t>(begin + size));
  renew_score(session);
  return true;
}

void SessionTable::drop(Session& session) {
  blocks_.cancel_prefetch(session.id);
  blocks_.close_owner(session.slot);
  due_.erase({session.next_score, session.id});
  slots_[static_cast<std::size_t>(session.slot)] = nullptr;
  unused_slots_.push_back(session.slot);
  sessions_.erase(session.id);
}

SessionReport SessionTable::report(SessionId id) {
  const Session* session = find(id);
  PAGED_CHECK(session != nullptr, "session ", id, " is closed");
  SessionReport report;
  report.view = view_of(*session);
  report.tenant = session->spec.tenant;
  report.num_resident_blocks = blocks_.owners().path_size(session->slot);
  const ContentId root = blocks_.acquire_root(session->spec.tenant);
  report.residency = blocks_.residency(root, session->tokens);
  blocks_.release_root(root);
  for (std::int32_t i = 0; i < report.num_resident_blocks; ++i)
    report.num_charged_blocks += 1.0 / blocks_.owners().num_owners(blocks_.owners().block_at(session->slot, i));
  report.num_leased_blocks = blocks_.lease(session->slot);
  report.is_held = session->score.hold || report.num_leased_blocks > 0;
  report.lease_left = std::max(0.0, session->lease_until - now_);
  report.expected_in = session->score.expected_in;
  report.num_turns = session->num_turns;
  report.num_computed_tokens = session->num_computed_tokens;
  report.num_reused_tokens = session->num_reused_tokens;
  report.misses = session->misses;
  return report;
}

bool SessionTable::may_begin_turn(SessionId id) const {
  const Session* session = find(id);
  return session != nullptr && !has_turn(*session);
}

const Session& SessionTable::begin_turn(SessionId id, bool only_appends) {
  Session& session = at(id);
  session.paused_since = only_appends && session.state == SessionState::kPaused ? session.state_since : -1.0;
  if (session.paused_since < 0.0) {
    if (session.num_turns > 0) policy_->on_event(SessionEvent::kReturned, view_of(session));
    session.expectation = {};
    session.tool.clear();
  }
  ++session.num_turns;
  const bool admits = policy_->admit(view_of(session), blocks_.pressure());
  enter(session, admits ? SessionState::kQueued : SessionState::kWaitsForRoom);
  return session;
}

void SessionTable::need_no_room(SessionId id) { enter(at(id), SessionState::kQueued); }

void SessionTable::admitted(SessionId id, std::int32_t num_reused_tokens, std::int32_t num_tokens) {
  Session& session = at(id);
  std::int32_t num_missed = std::max(0, session.num_known_tokens - num_reused_tokens);
  for (const auto& [cause_and_by, num_blocks] : session.lost_blocks) {
    const std::int32_t num_here = std::min(num_missed, num_blocks * blocks_.pressure().block_size);
    if (num_here == 0) continue;
    session.misses.push_back({session.num_turns, cause_and_by.first, num_here, cause_and_by.second});
    num_missed -= num_here;
  }
  session.lost_blocks.clear();
  const std::int32_t num_edited = std::min(std::exchange(session.num_edited_tokens, 0), num_tokens - num_reused_tokens);
  if (num_edited > 0) session.misses.push_back({session.num_turns, MissCause::kEdited, num_edited});
  session.num_reused_tokens += num_reused_tokens;
  session.num_computed_tokens += num_tokens - num_reused_tokens;
  enter(session, SessionState::kRunning);
}

void SessionTable::preempted(SessionId id) {
  Session& session = at(id);
  session.num_known_tokens = blocks_.owners().path_size(session.slot) * blocks_.pressure().block_size;
  enter(session, SessionState::kQueued);
}

void SessionTable::end_turn(SessionId id, std::span<const TokenId> tokens) {
  Session& session = at(id);
  const std::int32_t block_size = blocks_.pressure().block_size;
  session.tokens.assign(tokens.begin(), tokens.end());
  blocks_.truncate_owner(session.slot, static_cast<std::int32_t>(tokens.size()) / block_size);
  session.num_known_tokens = blocks_.owners().path_size(session.slot) * block_size;
  session.lost_blocks.clear();
  enter(session, session.paused_since < 0.0 ? SessionState::kIdle : SessionState::kPaused);
  if (session.paused_since >= 0.0) {
    session.state_since = session.paused_since;
    changed(session);
  }
  if (session.next_pause) begin_pause(session, *std::exchange(session.next_pause, std::nullopt));
  if (!session.is_closing) return;
  policy_->on_event(SessionEvent::kClosed, view_of(session));
  drop(session);
}

double SessionTable::deadline(SessionId id, std::int32_t num_tokens) const {
  if (!policy_->orders_by_session()) return 0.0;
  const Session* session = find(id);
  if (session == nullptr) return now_;
  const double service = session->served + span_cost(0, num_tokens, blocks_.pressure().cost);
  return now_ + kWaitPerService * service / session->spec.weight - session->waited;
}

const Session* SessionTable::find(SessionId id) const {
  const auto found = sessions_.find(id);
  return found == sessions_.end() ? nullptr : found->second.get();
}

SessionView SessionTable::view_of(const Session& session) const {
  SessionView view;
  view.id = session.id;
  view.revision = session.revision;
  view.tenant = session.spec.tenant;
  view.state = session.state;
  view.weight = session.spec.weight;
  view.tool = session.tool;
  view.since = now_ - session.state_since;
  view.expectation = session.expectation;
  view.num_tokens = session.num_known_tokens;
  view.num_resident_tokens = blocks_.owners().path_size(session.slot) * blocks_.pressure().block_size;
  return view;
}

void SessionTable::enter(Session& session, SessionState state) {
  const double seconds = now_ - session.state_since;
  if (session.state == SessionState::kQueued || session.state == SessionState::kWaitsForRoom)
    session.waited += seconds;
  else if (session.state != SessionState::kIdle)
    session.served += seconds;
  session.state = state;
  session.state_since = now_;
  changed(session);
}

void SessionTable::changed(Session& session) {
  ++session.revision;
  renew_score(session);
}

void SessionTable::propose(ProposedPolicy& policy, const Proposal& proposal) {
  const auto found = sessions_.find(proposal.id);
  if (found != sessions_.end() && policy.accept(proposal, view_of(*found->second))) renew_score(*found->second);
}

void SessionTable::renew_score(Session& session) {
  Score score = policy_->score(view_of(session), blocks_.pressure());
  if (blocks_.lease(session.slot) > 0) {
    if (now_ >= session.lease_until)
      blocks_.set_lease(session.slot, 0);
    else
      score.valid_for = std::min(score.valid_for, session.lease_until - now_);
  }
  const bool is_away = !has_turn(session);
  if (!is_away) session.copied_to = session.demoted_to = Tier::kDevice;
  if (session.demoted_to != Tier::kDevice) score = {false, 0.0, false, score.valid_for, score.expected_in};
  if (is_away) keep_copies(session);
  session.score = score;
  blocks_.set_score(session.slot, score);
  due_.erase({session.next_score, session.id});
  session.next_score = now_ + std::max(score.valid_for, kLeastSeconds);
  if (session.next_score < kNever) due_.insert({session.next_score, session.id});
}

// Where it was sent, or else where the policy places it.
void SessionTable::keep_copies(Session& session) {
  Tier tier = session.demoted_to;
  if (tier == Tier::kDevice) tier = policy_->place(view_of(session), blocks_.pressure());
  if (tier != Tier::kNowhere && session.copied_to < tier) store(session, tier);
}

StoredPath SessionTable::store(Session& session, Tier tier) {
  const ContentId root = blocks_.acquire_root(session.spec.tenant);
  const StoredPath stored = blocks_.store_path(root, session.tokens, tier);
  blocks_.release_root(root);
  if (stored.num_stored == stored.num_found) session.copied_to = tier;
  return stored;
}

void SessionTable::set_now(double seconds) {
  now_ = seconds;
  blocks_.set_now(seconds);
  while (!due_.empty() && due_.begin()->first <= now_) renew_score(at(due_.begin()->second));
}

void SessionTable::evicted(const Eviction& eviction) {
  Session& session = *slots_[static_cast<std::size_t>(eviction.owner)];
  const std::int32_t index = blocks_.owners().path_size(eviction.owner);
  const bool was_held = session.score.hold || index < blocks_.lease(eviction.owner);
  const MissCause cause = was_held ? MissCause::kEvicted : MissCause::kExpired;
  ++session.lost_blocks[{cause, eviction.by}];
}

void SessionTable::unreadable(SessionId id, std::int32_t num_blocks) {
  const auto found = sessions_.find(id);
  if (found != sessions_.end()) found->second->lost_blocks[{MissCause::kUnreadable, 0}] += num_blocks;
}

void SessionTable::check_integrity() const {
  std::size_t num_due = 0;
  for (const auto& [id, session] : sessions_) {
    PAGED_INVARIANT(session->id == id && slots_[static_cast<std::size_t>(session->slot)] == session.get(), "session ",
                    id, " has lost its slot");
    const bool is_due = due_.contains({session->next_score, id});
    PAGED_INVARIANT(is_due == (session->next_score < kNever), "session ", id, " is due or not in disagreement");
    num_due += is_due ? 1 : 0;
    const auto num_blocks = static_cast<std::int64_t>(blocks_.owners().path_size(session->slot));
    PAGED_INVARIANT(has_turn(*session) || num_blocks * blocks_.pressure().block_size <= std::ssize(session->tokens),
                    "session ", id, " owns ", num_blocks, " blocks of ", session->tokens.size(), " tokens");
  }
  PAGED_INVARIANT(num_due == due_.size(), "scores that run out: ", num_due, " counted, ", due_.size(), " kept");
}

}  // namespace paged

// SPDX-License-Identifier: Apache-2.0
// The sessions that live: what commands do to them, what the policy is told, and when scores are renewed. A session
// owns cached blocks without referencing them (owner_table.h): one that waits can never hold up anybody. Its turns are
// sequences that the scheduler runs; one at a time.
//
// Every command is O(log n) but for the blocks and tokens that it moves.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/block_manager.h"
#include "core/policy.h"
#include "core/proposed_policy.h"
#include "core/session.h"

namespace paged {

class SessionTable {
 public:
  SessionTable(BlockManager& blocks, std::shared_ptr<Policy> policy);

  SessionId open(SessionSpec spec);
  // Continues the parent's tokens as they stand after its last turn. 0 if the parent is unknown or its turn runs. To
  // fork a session that nobody waits for (a shared prefix) is to use it.
  SessionId fork(SessionId parent, std::optional<double> weight = std::nullopt);
  // One that has these tokens already. Where their keys and values are at hand, add_block() spares computing them:
  // block after block, `fill` is given each that is not cached. False: there is no room for it, or it would not be
  // full.
  SessionId restore(SessionSpec spec, std::vector<TokenId> tokens);
  bool add_block(SessionId id, const std::function<void(BlockId)>& fill);
  Receipt close(SessionId id);
  Receipt pause(SessionId id, std::string tool, Expectation expectation);
  // The tool that it waits for has done this share, (0, 1], of its work; or is back in so many seconds.
  Receipt progress(SessionId id, double share);
  Receipt eta(SessionId id, double seconds);
  // Goes back to so many tokens. `num_again`: of those behind them, as many from the end on come again in the next
  // turn, for it is an edit.
  Receipt rewind(SessionId id, std::int32_t num_tokens, std::int32_t num_again = 0);
  // A lease: the first so many blocks (none: as many as it has) go last until then; whoever runs may still need them.
  // Clipped where all leases together would leave less than one step may need.
  Receipt pin(SessionId id, double seconds, std::optional<std::int32_t> num_blocks = std::nullopt);
  // As long as its sessions own no more blocks than that, others take none of them. Clipped where all floors together
  // would leave less than the longest sequence may need. 0: none.
  Receipt set_floor(const std::string& tenant, std::int32_t num_blocks);
  // Its blocks are copied to the tier and are then the first that others take above it. Clipped to what transfers may
  // hold.
  Receipt demote(SessionId id, Tier tier = Tier::kHost);
  // What the tiers below have of it begins to come back, as far as there is room that is held for nobody; until it is
  // closed, goes back, is demoted or pauses, or a signal says that it is not back as soon.
  Receipt prefetch(SessionId id);
  void transfer_finished(SessionId loaded_for);  // 0: for none
  SessionReport report(SessionId id);

  // Turns. The prompt is the session's tokens and what the turn appends.
  bool may_begin_turn(SessionId id) const;
  // `only_appends`: it does not mean that a tool that the session waits for has returned.
  const Session& begin_turn(SessionId id, bool only_appends = false);
  void need_no_room(SessionId id);  // it has waited for room long enough
  void admitted(SessionId id, std::int32_t num_reused_tokens, std::int32_t num_tokens);
  void preempted(SessionId id);
  void end_turn(SessionId id, std::span<const TokenId> tokens);

  void propose(ProposedPolicy& policy, const Proposal& proposal);  // nothing if the session has changed since

  void set_now(double seconds);  // renews scores that have run out
  double now() const { return now_; }
  const Session* find(SessionId id) const;
  std::size_t size() const { return sessions_.size(); }
  // When a turn of so many tokens in all that begins now should run: when its session has waited, in all, for a
  // multiple of what it was served and of what computing the tokens takes. So short jobs go before long ones, and
  // everybody's time comes. Session 0: a request without a session, at once.
  double deadline(SessionId id, std::int32_t num_tokens) const;

  // Throws InternalError with what is wrong.
  void check_integrity() const;

 private:
  Session& at(SessionId id) { return *sessions_.at(id); }
  void begin_pause(Session& session, Pause pause);
  Session* waiting_for_tool(SessionId id, Receipt& receipt);
  Session* between_turns(SessionId id, Receipt& receipt);
  void keep_copies(Session& session);
  StoredPath store(Session& session, Tier tier);
  void signalled(Session& session);
  void unreadable(SessionId id, std::int32_t num_blocks);
  SessionView view_of(const Session& session) const;
  void enter(Session& session, SessionState state);
  void changed(Session& session);
  void renew_score(Session& session);
  void adopt(Session& session);
  void drop(Session& session);
  void evicted(const Eviction& eviction);

  BlockManager& blocks_;
  std::shared_ptr<Policy> policy_;
  double now_ = 0.0;
  SessionId last_id_ = 0;
  std::unordered_map<SessionId, std::unique_ptr<Session>> sessions_;
  std::vector<Session*> slots_;  // null: unused
  std::vector<OwnerSlot> unused_slots_;
  std::vector<SessionId> fetching_;
  std::set<std::pair<double, SessionId>> due_;  // when scores run out
};

}  // namespace paged

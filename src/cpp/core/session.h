// SPDX-License-Identifier: Apache-2.0
// An agent's conversation as the core keeps it, and what it tells of it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/block_manager.h"
#include "core/policy.h"
#include "core/types.h"

namespace paged {

struct SessionSpec {
  std::string tenant = {};  // also the salt of its sequences: tenants share no blocks
  double weight = 1.0;
};

// What became of a command.
enum class ReceiptStatus : std::uint8_t {
  kAccepted,
  kClipped,   // less than was asked for
  kDeferred,  // when the turn that runs has ended
  kRejected,
};

struct Receipt {
  ReceiptStatus status = ReceiptStatus::kAccepted;
  std::int32_t num_blocks = 0;  // that it concerns
  double until = 0.0;           // of the caller's clock, for what ends by itself
  std::string reason = {};
};

enum class MissCause : std::uint8_t {
  kUnreadable,  // their copies below the device could not be read back
  kEvicted,     // while its session was expected
  kExpired,     // after it was held no more
  kEdited,      // tokens before them were changed
};

// Tokens that a turn computed though they had been computed before.
struct Miss {
  std::int32_t turn = 0;
  MissCause cause = MissCause::kEvicted;
  std::int32_t num_tokens = 0;
  SequenceId by = 0;  // that needed the last of the blocks; 0: nobody
};

// What a session waits for.
struct Pause {
  std::string tool = {};
  Expectation expectation = {};
};

struct Session {
  SessionId id = 0;
  OwnerSlot slot = kNoOwner;
  SessionSpec spec;
  std::vector<TokenId> tokens;
  std::int32_t num_turns = 0;
  std::int32_t num_known_tokens = 0;     // that were computed when the last turn ended and are still its tokens
  std::int64_t num_computed_tokens = 0;  // by all turns
  std::int64_t num_reused_tokens = 0;    // that turns found in the cache

  std::int64_t revision = 0;  // counts what has happened to it
  SessionState state = SessionState::kIdle;
  double state_since = 0.0;
  double served = 0.0;  // seconds that its turns ran and its tools took
  double waited = 0.0;  // and that its turns waited to run
  std::string tool;
  Expectation expectation;
  double lease_until = 0.0;
  bool is_closing = false;          // when the turn has ended
  std::optional<Pause> next_pause;  // when the turn has ended
  double paused_since = -1.0;       // its turn only appends while the tool goes on; negative: it does not
  Tier demoted_to = Tier::kDevice;  // by a command, until it is back or fetched
  Tier copied_to = Tier::kDevice;   // all its blocks have copies there
  double next_score = 0.0;          // when its score has run out
  Score score;

  // Since the last turn.
  std::map<std::pair<MissCause, SequenceId>, std::int32_t> lost_blocks;
  std::int32_t num_edited_tokens = 0;  // that come again, behind what an edit changed
  std::vector<Miss> misses;
};

inline bool has_turn(const Session& session) {
  return session.state != SessionState::kIdle && session.state != SessionState::kPaused;
}

struct SessionReport {
  SessionView view;
  std::string tenant;
  std::int32_t num_resident_blocks = 0;
  Residency residency;
  double num_charged_blocks = 0.0;  // each shared with the others that own it
  bool is_held = false;
  std::int32_t num_leased_blocks = 0;
  double lease_left = 0.0;   // seconds
  double expected_in = 0.0;  // seconds
  std::int32_t num_turns = 0;
  std::int64_t num_computed_tokens = 0;
  std::int64_t num_reused_tokens = 0;
  std::vector<Miss> misses;
};

}  // namespace paged

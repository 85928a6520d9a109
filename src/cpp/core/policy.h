// SPDX-License-Identifier: Apache-2.0
// What a cache policy decides, and all it is told. A policy proposes: it orders what may be evicted and says who waits
// for room; it can neither lock a block nor stop a sequence for good. It is asked when something happened to a session
// or a score it gave has run out, never while blocks are handed out.
//
// Value is what everything is measured in: the seconds of computing that a block is expected to spare, for each second
// that it stays.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "core/types.h"

namespace paged {

// Computing n tokens after p others takes n * per_token + n * (p + n / 2) * per_token_pair seconds.
struct StepCost {
  double per_token = 1e-4;
  double per_token_pair = 0.0;
};

// What all sessions share.
struct Pressure {
  std::int32_t num_blocks = 0;
  std::int32_t block_size = 0;
  StepCost cost = {};
  std::int32_t num_host_blocks = 0;  // of the tiers below; 0: there is none
  std::int32_t num_disk_blocks = 0;
  double host_load_seconds = 0.0;  // to bring a block back from there, as measured lately; 0: not known
  double disk_load_seconds = 0.0;
  double load_seconds(Tier tier) const { return tier == Tier::kHost ? host_load_seconds : disk_load_seconds; }
};

enum class SessionState : std::uint8_t {
  kIdle,          // between turns, nothing announced
  kPaused,        // between turns, waits for a tool
  kQueued,        // a turn waits to be admitted
  kWaitsForRoom,  // a turn waits for blocks that nobody holds
  kRunning,
};

// When a session is expected back, in seconds since it left: nothing, a time, or quantiles of it.
struct Expectation {
  std::vector<std::pair<double, double>> quantiles = {};  // (share, seconds), ascending; one: a guess of the time
};

struct SessionView {
  SessionId id = 0;
  std::int64_t revision = 0;  // counts what has happened to it
  std::string tenant = {};
  SessionState state = SessionState::kIdle;
  double weight = 1.0;
  std::string tool = {};  // that it waits for, empty: unknown
  double since = 0.0;     // seconds in this state
  Expectation expectation = {};
  std::int32_t num_tokens = 0;
  std::int32_t num_resident_tokens = 0;
};

struct Score {
  bool by_age = true;                                            // its blocks go by age, like those of nobody
  double value = 0.0;                                            // else the lower goes first
  bool hold = false;                                             // those who wait for room do not get its blocks
  double valid_for = std::numeric_limits<double>::infinity();    // seconds, while nothing happens to the session
  double expected_in = std::numeric_limits<double>::infinity();  // seconds until it is back, as far as is known
};

enum class SessionEvent : std::uint8_t {
  kPaused,
  kReturned,  // a turn came; the view is as it was before
  kClosed,    // between two turns
};

class Policy {
 public:
  virtual ~Policy() = default;

  // What a block at the end of the session's resident tokens is worth.
  virtual Score score(const SessionView& session, const Pressure& pressure) const = 0;
  // What a block is worth that nobody owns and nobody has used for so long.
  virtual double score_by_age(double seconds, const Pressure& pressure) const = 0;
  // Where the session's blocks belong while it is away: a tier that there is, or nowhere.
  virtual Tier place(const SessionView& session, const Pressure& pressure) const = 0;
  // Whether what nobody has used for so long is worth a block of the tier.
  virtual bool keeps_by_age(Tier, double /*seconds*/, const Pressure&) const { return true; }
  // Whether its turn may take blocks that are held for others. One that may not waits for room, but not for ever:
  // see Scheduler.
  virtual bool admit(const SessionView& session, const Pressure& pressure) const = 0;
  // Whether turns queue by what their session was served and has waited (SessionTable::deadline); else by arrival.
  virtual bool orders_by_session() const = 0;
  // Whether blocks that only an ended branch or session owned are worth nothing at once.
  virtual bool forgets_superseded() const = 0;
  virtual void on_event(SessionEvent event, const SessionView& session) = 0;
};

// Seconds to compute num_new tokens after num_tokens.
inline double span_cost(double num_tokens, double num_new, const StepCost& cost) {
  return num_new * (cost.per_token + cost.per_token_pair * (num_tokens + num_new / 2));
}

// Seconds to compute one more block after num_tokens.
inline double block_cost(std::int32_t num_tokens, const Pressure& pressure) {
  return span_cost(num_tokens, pressure.block_size, pressure.cost);
}

// Whether to bring a sequence's first num_tokens tokens to the tier, as fast as from there, and back takes no longer
// than to compute them.
inline bool copy_pays(Tier tier, std::int32_t num_tokens, const Pressure& pressure) {
  const double computing = span_cost(0, num_tokens, pressure.cost);
  return 2 * pressure.load_seconds(tier) * num_tokens <= computing * pressure.block_size;
}

}  // namespace paged

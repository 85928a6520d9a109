// SPDX-License-Identifier: Apache-2.0
// What Python calls the states of sessions.
#pragma once

#include "core/policy.h"

namespace paged {

inline const char* name_of(SessionState state) {
  switch (state) {
    case SessionState::kIdle: return "idle";
    case SessionState::kPaused: return "paused";
    case SessionState::kQueued: return "queued";
    case SessionState::kWaitsForRoom: return "waits for room";
    case SessionState::kRunning: return "running";
  }
  return "";
}

}  // namespace paged

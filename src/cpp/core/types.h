// SPDX-License-Identifier: Apache-2.0
// The identifiers every part of the core speaks.
#pragma once

#include <cstdint>

namespace paged {

using TokenId = std::int32_t;
using BlockId = std::int32_t;
using SequenceId = std::uint64_t;
using SessionId = std::uint64_t;  // 0: none
using OwnerSlot = std::int32_t;   // of a session that lives, reused when it is closed
using TenantSlot = std::int32_t;  // of whoever sessions belong to
// Names the content of a cached block together with everything before it. Never used twice.
using ContentId = std::uint64_t;

inline constexpr BlockId kNoBlock = -1;
inline constexpr OwnerSlot kNoOwner = -1;
// In place of a sampled token: the host decides it from the logits, and brings it later (Scheduler::supply).
inline constexpr TokenId kTokenLater = -2;

// Where blocks are, the nearest first.
enum class Tier : std::uint8_t { kDevice, kHost, kDisk, kNowhere };

enum class FinishReason : std::uint8_t { kNone, kStop, kLength, kCancelled, kError };

}  // namespace paged

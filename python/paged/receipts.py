# SPDX-License-Identifier: Apache-2.0
"""What sessions tell: the receipts of commands, where tokens live, and what was missed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Receipt:
    """What became of a command.

    Attributes:
        status: "accepted"; "clipped", less than was asked for; "deferred" until the turn that runs has ended;
            "rejected", and nothing has changed.
        bytes: of the KV cache that it concerns.
        until: on the clock of `time.monotonic()`, for what ends by itself.
        reason: in words, where there is something to say.
    """

    status: Literal["accepted", "clipped", "deferred", "rejected"]
    bytes: int
    until: float | None
    reason: str


@dataclass(frozen=True)
class Miss:
    """Tokens that a turn computed though they had been computed before. `str()` says it in words.

    Attributes:
        turn: counts from 1.
        cause: "evicted": others took their blocks while the session was expected; "expired": they did when it was held
            no more; "edited": tokens before them were changed; "unreadable": the disk did not give them back.
        by: id of the request that took the last of the blocks; 0 for what nobody took.
    """

    turn: int
    cause: Literal["evicted", "expired", "edited", "unreadable"]
    num_tokens: int
    by: int

    def __str__(self) -> str:
        why = {
            "evicted": f"request {self.by} took their blocks while the session was expected",
            "expired": f"request {self.by} took their blocks when the session was held no more",
            "edited": "tokens before them were changed",
            "unreadable": "the disk's tier did not give them back as they were",
        }
        return f"turn {self.turn} computed {self.num_tokens} tokens again: {why[self.cause]}"


@dataclass(frozen=True)
class Tenant:
    """What a tenant has of the KV cache.

    Attributes:
        floor_bytes: as long as its sessions have no more than this, others take none of it.
        charged_bytes: that its sessions have, each block counted once.
    """

    num_sessions: int
    floor_bytes: int
    charged_bytes: int


@dataclass(frozen=True)
class Explanation:
    """Where a session's tokens live, when it is expected back, and why turns computed what had been computed.

    Attributes:
        state: "idle", "paused", "queued", "waits for room" (its turn waits for blocks that nobody holds) or "running".
        tool: that it waits for; "" if it was not said.
        since: seconds in this state.
        expected_in: seconds until it is back, as far as is known; infinite if nothing is.
        is_held: sessions that wait for room do not get its blocks.
        lease_left, leased_bytes: of `pin`, in seconds and of the KV cache.
        resident_bytes: of its KV cache that are on the device and its own.
        device_bytes, host_bytes, disk_bytes: of its tokens' blocks in each tier, in several if they have copies.
        charged_bytes: of those, with each block shared by the sessions that use it.
        num_reused_tokens, num_computed_tokens: of all its turns' prompts, found in the cache and computed.
    """

    state: Literal["idle", "paused", "queued", "waits for room", "running"]
    tool: str
    since: float
    expected_in: float
    is_held: bool
    lease_left: float
    leased_bytes: int
    resident_bytes: int
    device_bytes: int
    host_bytes: int
    disk_bytes: int
    charged_bytes: float
    num_turns: int
    num_reused_tokens: int
    num_computed_tokens: int
    misses: tuple[Miss, ...]

# SPDX-License-Identifier: Apache-2.0
"""Cache policies: those with names, and `Policy` for one of your own."""

from __future__ import annotations

import contextlib
import math
import threading
import warnings
from dataclasses import dataclass
from typing import Any, Literal

from paged import _C
from paged.checks import shown

PolicyName = Literal["lru", "ttl", "priority", "hazard"]
POLICY_NAMES: tuple[PolicyName, ...] = ("lru", "ttl", "priority", "hazard")
DEFAULT_TTL = 60.0  # seconds; most tools are back by then


@dataclass(frozen=True)
class SessionView:
    """A session as it was when the policy was asked.

    Attributes:
        state: "idle", "paused", "queued", "waits for room" or "running".
        tool: that it waits for; "" if it was not said.
        since: seconds in this state.
        expect: when it is back, as the application announced it: (share, seconds) ascending.
        num_tokens: that were computed; num_resident_tokens of them are still there.
    """

    id: int
    tenant: str
    state: str
    tool: str
    since: float
    expect: tuple[tuple[float, float], ...]
    weight: float
    num_tokens: int
    num_resident_tokens: int


@dataclass(frozen=True)
class Pressure:
    """What all sessions share.

    Attributes:
        num_blocks: of the KV pool, of block_size tokens each.
        seconds_per_token: that computing one takes, lately.
    """

    num_blocks: int
    block_size: int
    seconds_per_token: float


@dataclass(frozen=True)
class Worth:
    """What the blocks of a session are worth.

    Attributes:
        value: blocks of less go first. The fallback's values are seconds of computing spared, for each second held.
        hold: sessions that wait for room do not get them.
        valid_for: seconds, while nothing happens to the session; then `score` is asked again.
    """

    value: float
    hold: bool = False
    valid_for: float = math.inf


class Policy:
    """Decides whose blocks go first, where a session belongs while it is away, and whose turns wait for room. Override
    what you want to decide; None is what the fallback says. `LLM(policy=MyPolicy())`.

    It is asked on a thread of its own, with copies, whenever something has happened to a session or a `Worth` has run
    out; the engine never waits for it. What it returns counts from when it arrives, as long as the session stays in the
    state it was asked about; until then, if it takes longer than `patience`, and if it raises, the fallback decides.
    `llm.stats()` counts both, and the first of each is a warning. Answers never depend on a policy, only times do.
    """

    fallback: PolicyName = "hazard"
    patience: float = 1.0
    """Seconds that it may take, and that its last word counts on while the next one is awaited."""

    def score(self, session: SessionView, pressure: Pressure) -> Worth | float | None:
        """What a block at the end of what is left of the session is worth."""
        return None

    def place(self, session: SessionView, pressure: Pressure) -> Literal["device", "host", "disk", "nowhere"] | None:
        """Where the blocks of a session that is away belong."""
        return None

    def admit(self, session: SessionView, pressure: Pressure) -> bool | None:
        """Whether the session's next turn may take blocks that others hold; else it waits for room, though not for
        ever."""
        return None

    def on_event(self, event: Literal["paused", "returned", "closed"], session: SessionView) -> None:
        """It began to wait for a tool; a turn came (`session` is as it was before); it was closed between two turns."""


@dataclass(frozen=True)
class PolicyChoice:
    """What `LLM(policy=...)` was given, checked."""

    name: PolicyName
    ttl: float = DEFAULT_TTL
    custom: Policy | None = None

    @property
    def description(self) -> str:
        if self.custom is not None:
            return f"{type(self.custom).__name__}, fallback {self.custom.fallback}"
        return f"ttl:{self.ttl:g}" if self.name == "ttl" else self.name


def choose_policy(given: object) -> PolicyChoice:
    """Raises ValueError, TypeError: it is neither a name nor a policy."""
    if isinstance(given, Policy):
        if given.fallback not in POLICY_NAMES:
            raise ValueError(f"a policy's fallback is one of {', '.join(POLICY_NAMES)}, got {shown(given.fallback)}")
        if isinstance(given.patience, bool) or not isinstance(given.patience, int | float):
            raise TypeError(f"a policy's patience is a number of seconds, got {shown(given.patience)}")
        if not 0 < given.patience < math.inf:
            raise ValueError(f"a policy's patience is a number of seconds above 0, got {shown(given.patience)}")
        return PolicyChoice(given.fallback, custom=given)
    if not isinstance(given, str):
        raise TypeError(f"policy takes a name or a paged.Policy, got {shown(given)}")
    for name in POLICY_NAMES:
        if given == name:
            return PolicyChoice(name)
    with contextlib.suppress(ValueError):
        seconds = float(given.removeprefix("ttl:"))
        if given.startswith("ttl:") and 0 < seconds < math.inf:
            return PolicyChoice("ttl", seconds)
    raise ValueError(
        f"policy is one of {', '.join(POLICY_NAMES)}, or 'ttl:<seconds>', or a paged.Policy, got {shown(given)}"
    )


class PolicyThread:
    """Asks a policy what its engine wants to know, until that closes. Holds neither the engine nor the `LLM`."""

    def __init__(self, policy: Policy, desk: _C.PolicyDesk) -> None:
        self._policy = policy
        self._desk = desk
        self._warned: set[str] = set()
        threading.Thread(target=self._work, name="paged-policy", daemon=True).start()

    def _work(self) -> None:
        while questions := self._desk.wait():
            for event, ticket, session, pressure in questions:
                try:
                    self._answer(event, ticket, session, pressure)
                except BaseException as error:  # whatever it raises, SystemExit too: the fallback decides
                    self._desk.count_failed()
                    self._warn_once("failed", f"has failed ({type(error).__name__}: {error})")
                if self._desk.num_late:
                    self._warn_once("late", f"has answered too late: it has {self._policy.patience} s")

    def _answer(self, event: Any, ticket: Any, session: dict[str, Any], pressure: dict[str, Any]) -> None:
        view = SessionView(**session)
        if event is not None:
            self._policy.on_event(event, view)
            return
        around = Pressure(**pressure)
        worth = self._policy.score(view, around)
        if worth is not None and not isinstance(worth, Worth):
            worth = Worth(float(worth))
        score = None if worth is None else (float(worth.value), bool(worth.hold), float(worth.valid_for))
        tier = self._policy.place(view, around)
        admits = self._policy.admit(view, around)
        self._desk.propose(ticket, score, tier, None if admits is None else bool(admits))

    def _warn_once(self, kind: str, what: str) -> None:
        if kind in self._warned:
            return
        self._warned.add(kind)
        with contextlib.suppress(Warning):  # where warnings are errors: there is nobody to catch it
            warnings.warn(
                f"the cache policy {type(self._policy).__name__} {what}. Where it does, '{self._policy.fallback}' "
                "decides; llm.stats() counts how often",
                RuntimeWarning,
                stacklevel=2,
            )

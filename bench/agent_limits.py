# SPDX-License-Identifier: Apache-2.0
"""What no policy can beat: a lower bound of the mean job time and of the makespan of a replay, proven by duality.

Whatever is scheduled, by time t the jobs that have ended took
- device seconds: their new prompt tokens, the contexts that they read, and a share of the weights' reading in each
  decode step, which is shared at most by as many as fit into the pool; and
- of pool x t token-seconds: their contexts while they decode, and in each wait for a tool every token that is kept. One
  that is not kept costs device seconds, to be computed again.
For any price of a token-second, device seconds and priced token-seconds, with the cheaper of keeping and computing
again for each token of a wait, add up to at most t x (1 + price x pool) over the ended jobs. So c jobs end no sooner
than the c lightest of those that may have begun (agents begin in order, each when one has ended), and the mean follows;
the best of many prices is taken. A job is also no shorter than alone on the device with an endless cache. What others
may hold too (shared prompts, what a fork continues) counts as free. A tier below the pool adds its tokens to those that
may be kept, as if moving them took no time.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np

from agent_workload import Agent

NUM_PRICES = 48


@dataclass(frozen=True)
class Device:
    """Seconds of a step: `base`, its prompt tokens (each, and each pair), `decode_base` if anybody decodes, and what
    reading the contexts of those takes. A step has at most `step_tokens`."""

    base: float
    per_token: float
    per_token_pair: float
    decode_base: float
    per_decoded_context_token: float
    step_tokens: int

    def prefill(self, position: float, num_tokens: float) -> float:
        return num_tokens * (self.per_token + self.per_token_pair * (position + num_tokens / 2))


@dataclass
class Job:
    """What an agent's turns need at least: device seconds, seconds alone, token-seconds while they run, and of each
    wait the tokens [lo, hi) that are its own, and its seconds: waits is [n, 3]."""

    device_seconds: float = 0.0
    least_seconds: float = 0.0
    running_token_seconds: float = 0.0
    waits: np.ndarray | None = None


def jobs_of(agents: list[Agent], device: Device, pool: int) -> list[Job]:
    """pool: tokens."""
    room = pool - min(agent.num_prefix_tokens for agent in agents if agent.is_root)
    start = {i: (a.num_prefix_tokens, a.num_prefix_tokens) for i, a in enumerate(agents) if a.is_root}
    jobs = [Job() for _ in agents]
    to_do = list(start)
    while to_do:
        index = to_do.pop()
        for child, length, known in _add_turns(jobs[index], agents[index], start[index], device, room):
            start[child] = (length, known)
            to_do.append(child)
    return jobs


def _add_turns(job: Job, agent: Agent, start: tuple[int, int], device: Device, room: int) -> list[tuple[int, int, int]]:
    """Returns who is spawned, with how many tokens, of which so many are computed."""
    length, known = start
    shared = length  # leading tokens that others may hold
    spawned, waits = [], []
    for i, turn in enumerate(agent.turns):
        if 0 <= turn.keep < length:
            length, known, shared = turn.keep, min(known, turn.keep), min(shared, turn.keep)
        length += turn.append
        prefill = device.prefill(known, length - known)
        decodes = turn.output - 1
        reads = device.per_decoded_context_token * decodes * (length + turn.output / 2)
        weights = decodes * (device.base + device.decode_base)
        job.device_seconds += prefill + reads + (length - known) * device.base / device.step_tokens
        job.device_seconds += weights * max(0, length - shared) / room
        job.running_token_seconds += (length - shared) * (weights + reads)
        job.least_seconds += device.base + prefill + weights + reads
        known, length = length + decodes, length + turn.output
        if turn.spawn >= 0:
            spawned.append((turn.spawn, length, known))
            shared = length
        if i + 1 < len(agent.turns):
            job.least_seconds += turn.gap
            keep = agent.turns[i + 1].keep
            needed = known if keep < 0 else min(known, keep)
            if needed > shared:
                waits.append((shared, needed, turn.gap))
    job.waits = np.array(waits, dtype=float).reshape(-1, 3)
    return spawned


def _weight(job: Job, price: float, device: Device) -> float:
    """Device seconds and priced token-seconds, each wait at the cheaper of keeping and computing again."""
    assert job.waits is not None
    low, high, seconds = job.waits.T
    per_token = device.per_token + device.base / device.step_tokens
    kept_from = np.clip((price * seconds - per_token) / device.per_token_pair, low, high)
    again = (kept_from - low) * per_token + device.per_token_pair * (kept_from**2 - low**2) / 2
    waits = float((again + (high - kept_from) * price * seconds).sum())
    return job.device_seconds + price * job.running_token_seconds + waits


def _ends(weights: list[float], num_slots: int) -> np.ndarray:
    """[n + 1] before which time no more than so many can have ended."""
    n = len(weights)
    lightest = sorted(weights[:num_slots])
    ends = np.zeros(n + 1)
    for count in range(1, n + 1):
        ends[count] = sum(lightest[:count])
        if num_slots + count <= n:
            bisect.insort(lightest, weights[num_slots + count - 1])
    return np.minimum.accumulate(ends[::-1])[::-1]


def least_times(
    agents: list[Agent], device: Device, pool: int, num_slots: int, stagger: float, below: int = 0
) -> tuple[float, float]:
    """Mean job time and makespan, in seconds, that no schedule can be below.

    Args:
        pool: tokens that fit.
        below: and into the tiers below.
        num_slots: root agents that live at once, of which the first begin over `stagger` seconds.
    """
    jobs = jobs_of(agents, device, pool)
    roots = [job for job, agent in zip(jobs, agents, strict=True) if agent.is_root]
    n = len(roots)
    alive = np.minimum(num_slots, n - np.arange(n))
    head_start = sum(stagger * slot / num_slots for slot in range(min(num_slots, n)))
    queued, makespan = 0.0, max(job.least_seconds for job in roots)
    for price in [0.0, *np.geomspace(1e-9, 1e-3, NUM_PRICES)]:
        weights = [_weight(job, price, device) / (1 + price * (pool + below)) for job in roots]
        ends = _ends(weights, num_slots)
        queued = max(queued, float((np.diff(ends) * alive).sum()) - head_start)
        makespan = max(makespan, sum(_weight(job, price, device) for job in jobs) / (1 + price * (pool + below)))
    alone = sum(job.least_seconds for job in roots)
    spawned = sum(job.least_seconds for job in jobs) - alone
    return (max(queued, alone) + spawned) / len(agents), makespan

# SPDX-License-Identifier: Apache-2.0
"""Agents as they were seen in the field: a generator of traces, in tokens divided by SCALE.

Steps of a session, tool times, lengths of outputs and of appended texts follow what was published of 4,265 coding
sessions: heavy tails in everything. Times are seconds and are not scaled; `bench_agents.py` scales the device instead.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace

SCALE = 16
TOOLS = ("read", "edit", "search", "shell", "test", "build", "web", "other")
# Medians of the tools about the median of all, and their spread: together LogNormal(0.3 s, 2.9).
_TOOL_MEDIANS = (0.02, 0.03, 0.1, 0.3, 2.0, 8.0, 1.5, 0.3)
_TOOL_SHARES = (0.28, 0.14, 0.14, 0.2, 0.08, 0.04, 0.06, 0.06)
_TOOL_SIGMA = 2.2


@dataclass(frozen=True)
class Shape:
    """What to generate.

    Attributes:
        human_share: of the steps, those that a human answers instead of a tool.
        constant_tool: seconds of every tool; None: heavy-tailed.
        correlation: of the logarithms of an agent's tool times: whose tools were slow has slow ones again.
        max_steps, max_tokens: of an agent; tokens (scaled) are what a model takes.
    """

    num_agents: int
    seed: int = 0
    human_share: float = 0.0
    constant_tool: float | None = None
    correlation: float = 0.0
    max_steps: int = 150
    max_tokens: int = 128_000 // SCALE
    fork_share: float = 0.44
    edit_share: float = 0.02


@dataclass
class Turn:
    keep: int
    append: int
    output: int
    gap: float
    guess: float = -1.0
    tool: int = 0
    spawn: int = -1


@dataclass
class Agent:
    is_root: bool
    prefix: int
    num_prefix_tokens: int
    turns: list[Turn] = field(default_factory=list)


def generate(shape: Shape) -> list[Agent]:
    """Agents in the order in which they begin; forks stand behind the agent that spawns them."""
    rng = random.Random(shape.seed)
    prefixes = [rng.randint(7_000, 28_000) // SCALE for _ in range(4)]
    agents: list[Agent] = []
    while sum(agent.is_root for agent in agents) < shape.num_agents:
        variant = rng.randrange(len(prefixes))
        root = Agent(True, variant, prefixes[variant])
        agents.append(root)
        steps = min(shape.max_steps, max(2, round(rng.lognormvariate(2.7726, 1.8))))
        _write_turns(root, root.num_prefix_tokens, steps, shape, rng)
        if len(root.turns) > 3 and rng.random() < shape.fork_share:
            at = rng.randrange(1, len(root.turns) - 1)
            child = Agent(False, 0, 0)
            _write_turns(child, _length_after(root, at), min(shape.max_steps, 2 + steps // 4), shape, rng)
            root.turns[at].spawn = len(agents)
            agents.append(child)
    return agents


def _write_turns(agent: Agent, length: int, steps: int, shape: Shape, rng: random.Random) -> None:
    slowness = rng.gauss(0.0, 1.0) if shape.correlation > 0 else 0.0
    for _ in range(steps):
        append = _append_tokens(rng)
        output = max(1, round(min(rng.lognormvariate(5.366, 1.34), 8_000) / SCALE))
        keep = -1
        if length + append + output >= shape.max_tokens:  # compaction: a fifth stays
            keep = length // 5
        elif length > agent.num_prefix_tokens and agent.turns and rng.random() < shape.edit_share:
            keep = rng.randrange(max(1, agent.num_prefix_tokens), length + 1)
        length = (length if keep < 0 else keep) + append + output
        if length >= shape.max_tokens:
            length -= append - 1
            append = 1
        gap, tool = _gap(shape, slowness, rng)
        agent.turns.append(Turn(keep, append, output, gap, tool=tool))


def _length_after(agent: Agent, turn: int) -> int:
    length = agent.num_prefix_tokens
    for each in agent.turns[: turn + 1]:
        length = (length if each.keep < 0 else each.keep) + each.append + each.output
    return length


def longest_context(agents: list[Agent]) -> int:
    """Tokens, of any agent at any time."""
    start = {i: agent.num_prefix_tokens for i, agent in enumerate(agents) if agent.is_root}
    longest = 0
    for i, agent in enumerate(agents):  # those that spawn stand before those that they spawn
        length = start[i]
        for turn in agent.turns:
            length = (length if turn.keep < 0 else min(length, turn.keep)) + turn.append + turn.output
            longest = max(longest, length)
            if turn.spawn >= 0:
                start[turn.spawn] = length
    return longest


def _append_tokens(rng: random.Random) -> int:
    """Median 0.9K, mean about 2K, most of it in few long texts."""
    tokens = rng.uniform(10_000, 25_000) if rng.random() < 0.06 else min(rng.lognormvariate(6.7, 1.0), 9_999)
    return max(1, round(tokens / SCALE))


def _gap(shape: Shape, slowness: float, rng: random.Random) -> tuple[float, int]:
    if rng.random() < shape.human_share:
        is_long = rng.random() < 0.05
        return (rng.lognormvariate(8.88, 2.0) if is_long else rng.lognormvariate(4.317, 1.8)), len(TOOLS)
    tool = rng.choices(range(len(TOOLS)), _TOOL_SHARES)[0]
    if shape.constant_tool is not None:
        return shape.constant_tool, tool
    own = math.exp(_TOOL_SIGMA * math.sqrt(shape.correlation) * slowness)
    rest = rng.lognormvariate(0.0, _TOOL_SIGMA * math.sqrt(1 - shape.correlation))
    return min(_TOOL_MEDIANS[tool] * own * rest * 1.6, 7_200.0), tool


def with_guesses(agents: list[Agent], kind: str, seed: int = 1) -> list[Agent]:
    """What the application tells: "none", "true", "x10", "div10" or "shuffled" (true times of other turns)."""
    rng = random.Random(seed)
    shuffled = [turn.gap for agent in agents for turn in agent.turns]
    rng.shuffle(shuffled)
    pool = iter(shuffled)
    guess = {
        "none": lambda gap: -1.0, "true": lambda gap: gap, "x10": lambda gap: gap * 10,
        "div10": lambda gap: gap / 10, "shuffled": lambda gap: next(pool),
    }[kind]  # fmt: skip
    return [replace(agent, turns=[replace(turn, guess=guess(turn.gap)) for turn in agent.turns]) for agent in agents]

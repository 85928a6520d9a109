# SPDX-License-Identifier: Apache-2.0
"""The workloads every engine is given, as token ids. Standard library only.

Greedy, end of text ignored, so each engine makes exactly the tokens asked for. The lengths never change; the ids do
with `round_index`, so that a prefix cache cannot answer one round from the round before it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

# Ordinary text tokens in every vocabulary that we compare on: above the special ids, below 32,000.
_FIRST_TOKEN_ID = 1_000
_LAST_TOKEN_ID = 30_000

MIXED_PROMPT_TOKENS = 10_851
MIXED_OUTPUT_TOKENS = 2_104


@dataclass(frozen=True)
class Workload:
    """Requests submitted at once.

    `prompts`: token ids, one list per request. `max_tokens`: tokens to make, one per request. The first `prefix_len`
    ids of all prompts are the same, and engines that cache prefixes compute them before the clock starts.
    """

    prompts: list[list[int]]
    max_tokens: list[int]
    prefix_len: int = 0

    @property
    def num_prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def num_output_tokens(self) -> int:
        return sum(self.max_tokens)


def single_stream(round_index: int) -> Workload:
    """One request, 32 tokens in, 128 out."""
    return Workload([_token_ids("single", round_index, 32)], [128])


def mixed_requests(round_index: int) -> Workload:
    """32 requests: 16–512 tokens in, 16–128 out, both uniform (10,851 and 2,104 in all)."""
    lengths = random.Random(0)
    prompts: list[list[int]] = []
    max_tokens: list[int] = []
    for index in range(32):
        prompts.append(_token_ids(f"mixed {index}", round_index, lengths.randint(16, 512)))
        max_tokens.append(lengths.randint(16, 128))
    workload = Workload(prompts, max_tokens)
    sums = (workload.num_prompt_tokens, workload.num_output_tokens)
    if sums != (MIXED_PROMPT_TOKENS, MIXED_OUTPUT_TOKENS):
        raise RuntimeError(f"this Python draws other lengths: {sums}; results would compare with no other run")
    return workload


def shared_prefix(round_index: int) -> Workload:
    """16 requests that share 512 tokens and add 32 of their own, 32 out."""
    prefix = _token_ids("prefix", round_index, 512)
    prompts = [prefix + _token_ids(f"own {index}", round_index, 32) for index in range(16)]
    return Workload(prompts, [32] * 16, prefix_len=len(prefix))


def long_prompt(round_index: int) -> Workload:
    """One prompt of 4,096 tokens, one token out."""
    return Workload([_token_ids("long", round_index, 4096)], [1])


def start_up(round_index: int) -> Workload:
    """What a fresh process runs after it has loaded the model: 32 tokens in, one out."""
    return Workload([_token_ids("start", round_index, 32)], [1])


@dataclass(frozen=True)
class Case:
    """A workload with the name and the headline that its results go by."""

    name: str
    workload: Callable[[int], Workload] = field(repr=False)
    title: str = ""


SINGLE_STREAM = Case("single_stream", single_stream, "one stream, 32 in, 128 out")
MIXED_REQUESTS = Case("mixed_requests", mixed_requests, "32 requests at once, 10,851 tokens in, 2,104 out")
SHARED_PREFIX = Case("shared_prefix", shared_prefix, "16 requests share 512 tokens, 32 own, 32 out, prefix warm")
LONG_PROMPT = Case("long_prompt", long_prompt, "one prompt of 4,096 tokens, 1 out")
START_UP = Case("start_up", start_up, "fresh process: import, load, first token of 32; peak memory")
CASES = {case.name: case for case in (SINGLE_STREAM, MIXED_REQUESTS, SHARED_PREFIX, LONG_PROMPT, START_UP)}


def _token_ids(stream: str, round_index: int, length: int) -> list[int]:
    source = random.Random(f"{stream} {round_index}")
    return [source.randint(_FIRST_TOKEN_ID, _LAST_TOKEN_ID) for _ in range(length)]

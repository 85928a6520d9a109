# SPDX-License-Identifier: Apache-2.0
"""Log-likelihoods of given continuations: what evaluators ask. Beginnings that several share are computed once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paged.checks import shown
from paged.handle import Handle
from paged.outputs import RequestError
from paged.sampling import SamplingParams
from paged.waiting import wait_all

if TYPE_CHECKING:
    from paged.llm import LLM, Prompt, TokenIds

# Shorter ones are not worth waiting for.
_MIN_SHARED_TOKENS = 32


@dataclass(frozen=True)
class Score:
    """What the model says of a continuation.

    Attributes:
        token_ids: of the continuation.
        logprobs: of each, after all before it; natural logarithms.
        is_greedy: each is the most likely token in its place.
    """

    token_ids: list[int]
    logprobs: list[float]
    is_greedy: bool

    @property
    def logprob(self) -> float:
        """Of the whole continuation."""
        return math.fsum(self.logprobs)


def score(llm: LLM, pairs: Sequence[tuple[Prompt, Prompt]], *, use_tqdm: bool, priority: int) -> list[Score]:
    """See `LLM.score`."""
    submitted = submit_pairs(llm, pairs, priority)
    wait_all([handle for handle, _ in submitted], use_tqdm)
    return [score_of(handle, continuation) for handle, continuation in submitted]


def submit_pairs(llm: LLM, pairs: Sequence[tuple[Prompt, Prompt]], priority: int) -> list[tuple[Handle, TokenIds]]:
    """A request and the continuation for each pair; none is left behind when one is refused."""
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Sequence):
        raise TypeError(f"pairs takes a list of (prompt, continuation), got {shown(pairs)}")
    texts = [_encode_pair(llm, index, pair) for index, pair in enumerate(pairs)]
    wholes = [prompt + continuation for prompt, continuation in texts]
    order = sorted(range(len(wholes)), key=wholes.__getitem__)
    handles: dict[int, Handle] = {}
    try:
        leaders = shared_beginnings([wholes[index] for index in order])
        for index, leader in zip(order, leaders, strict=True):
            follows = 0 if leader is None else handles[order[leader]].id
            try:
                handles[index] = llm._submit(
                    wholes[index][:-1], _params(*texts[index]), priority, None, Handle, follows
                )
            except ValueError as error:
                raise ValueError(f"pair {index} of {len(pairs)}: {error}") from error
    except BaseException:
        for handle in handles.values():
            handle.cancel()
        raise
    return [(handles[index], continuation) for index, (_, continuation) in enumerate(texts)]


def shared_beginnings(sequences: Sequence[Sequence[int]]) -> list[int | None]:
    """For each of `sequences`, which are sorted: the first one before it with which it shares most, or None."""
    leaders: list[int | None] = []
    groups: list[tuple[int, int]] = []  # (shared tokens, leader), each inside of the one before
    for index, sequence in enumerate(sequences):
        shared = _num_shared(sequences[index - 1], sequence) if index > 0 else 0
        leader = index - 1
        while groups and groups[-1][0] > shared:
            leader = groups.pop()[1]
        if shared < _MIN_SHARED_TOKENS:
            groups.clear()
        elif not groups or groups[-1][0] < shared:
            groups.append((shared, leader))
        leaders.append(groups[-1][1] if groups else None)
    return leaders


def _num_shared(a: Sequence[int], b: Sequence[int]) -> int:
    return next((index for index, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _encode_pair(llm: LLM, index: int, pair: tuple[Prompt, Prompt]) -> tuple[TokenIds, TokenIds]:
    """A string continuation is what the tokens of the whole text have more than those of the prompt."""
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise TypeError(f"pair {index}: expected a prompt and its continuation, got {shown(pair)}")
    prompt, continuation = pair
    token_ids = llm._token_ids(prompt)
    if not isinstance(continuation, str):
        following = llm._token_ids(continuation)
    elif isinstance(prompt, str):
        following = llm._token_ids(prompt + continuation)[len(token_ids) :]
    else:
        following = llm.tokenizer.encode(continuation, add_special_tokens=False)
    if not token_ids or not following:
        raise ValueError(
            f"pair {index}: a prompt and its continuation have at least one token each, "
            f"got {len(token_ids)} and {len(following)}"
        )
    return token_ids, following


def _params(prompt: TokenIds, continuation: TokenIds) -> SamplingParams:
    """The last token comes as the one that may be sampled: then nothing is computed that is not wanted."""
    return SamplingParams(
        temperature=0.0, max_tokens=1, ignore_eos=True, allowed_token_ids=continuation[-1:], logprobs=1,
        prompt_logprobs=1 if len(continuation) > 1 else None, prompt_logprobs_start=len(prompt),
    )  # fmt: skip


def score_of(handle: Handle, continuation: TokenIds) -> Score:
    """What a finished request of `submit_pairs` found."""
    completion = handle._completion()
    if completion.error is not None or completion.logprobs is None or len(completion.token_ids) != 1:
        raise RequestError(completion.error or f"it was ended early: {completion.finish_reason}", completion)
    scored = [*(completion.prompt_logprobs or []), *completion.logprobs]
    of_tokens = [of_token for of_token in scored[-len(continuation) :] if of_token is not None]
    logprobs = [of_token[token].logprob for token, of_token in zip(continuation, of_tokens, strict=True)]
    is_greedy = all(len(of_token) == 1 for of_token in of_tokens)  # itself and the most likely one are the same
    return Score(continuation, logprobs, is_greedy)

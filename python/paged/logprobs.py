# SPDX-License-Identifier: Apache-2.0
"""The engine's arrays of scores as `TokenLogprobs`."""

from __future__ import annotations

from paged import _C
from paged.outputs import Logprob, TokenLogprobs


def token_logprobs(scores: _C.ScoreArrays | None) -> list[TokenLogprobs] | None:
    """One for each token; None: they were not asked for."""
    if scores is None:
        return None
    return [_of_token(*of_token) for of_token in zip(*(array.tolist() for array in scores), strict=True)]


def prompt_logprobs(
    scores: tuple[int, _C.ScoreArrays] | None, num_prompt_tokens: int
) -> list[TokenLogprobs | None] | None:
    """One for each token of the prompt; None: they were not asked for, or the request ended before they were there."""
    if scores is None:
        return None
    first = min(scores[0], num_prompt_tokens)
    scored = token_logprobs(scores[1]) or []
    return [*[None] * first, *scored] if len(scored) == num_prompt_tokens - first else None


def _of_token(ids: list[int], values: list[float], ranks: list[int]) -> TokenLogprobs:
    """The token's own entry, which is exact, stays first if it is among the most likely ones too."""
    found: TokenLogprobs = {}
    for token, value, rank in zip(ids, values, ranks, strict=True):
        found.setdefault(token, Logprob(value, rank))
    return found

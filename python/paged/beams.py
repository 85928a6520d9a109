# SPDX-License-Identifier: Apache-2.0
"""Beam search, a function on top of the engine: each step of each beam is a request whose prompt the cache has."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from paged.checks import shown
from paged.outputs import RequestError, TokenLogprobs
from paged.sampling import SamplingParams

if TYPE_CHECKING:
    from paged.llm import LLM, Prompt, TokenIds

_MAX_BEAM_WIDTH = 256


@dataclass(frozen=True)
class BeamSearchParams:
    """How a beam search runs.

    Attributes:
        beam_width: beams that are kept at each step, and answers that come out; up to 256.
        max_tokens: most tokens of an answer.
        ignore_eos: go on past the model's end-of-sequence ids.
        length_penalty: answers are ranked by logprob / len(token_ids) ** length_penalty: the larger, the longer they
            are; in [-10, 10].

    Raises:
        TypeError, ValueError: naming the field, what arrived and what is allowed.
    """

    beam_width: int
    max_tokens: int = 16
    ignore_eos: bool = False
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, high in (("beam_width", _MAX_BEAM_WIDTH), ("max_tokens", 2**31 - 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {shown(value)}")
            if not 1 <= value <= high:
                raise ValueError(f"{name} must be in [1, {high}], got {shown(value)}")
        if not isinstance(self.ignore_eos, bool):
            raise TypeError(f"ignore_eos must be True or False, got {shown(self.ignore_eos)}")
        if isinstance(self.length_penalty, bool) or not isinstance(self.length_penalty, int | float):
            raise TypeError(f"length_penalty must be a number, got {shown(self.length_penalty)}")
        if not -10 <= self.length_penalty <= 10:
            raise ValueError(f"length_penalty must be in [-10, 10], got {shown(self.length_penalty)}")


@dataclass(frozen=True)
class Beam:
    """One answer of a beam search.

    Attributes:
        token_ids: every token, an end-of-sequence id included.
        logprob: of all of them, by the model.
        finish_reason: "stop" (an end-of-sequence id) or "length" (max_tokens or the context).
        text: without special tokens; empty if the model has no tokenizer.
    """

    token_ids: list[int]
    logprob: float
    finish_reason: Literal["stop", "length"]
    text: str = ""

    def score(self, length_penalty: float) -> float:
        """What answers are ranked by, the larger the better."""
        return _score(self.logprob, len(self.token_ids), length_penalty)


def _score(logprob: float, length: int, length_penalty: float) -> float:
    return logprob / math.pow(length, length_penalty)


@dataclass(frozen=True)
class _Running:
    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0


class BeamSearch:
    """Of one prompt: `prompts()` are to be continued by a token each, `advance()` takes how likely these are."""

    def __init__(self, prompt: TokenIds, params: BeamSearchParams, end_token_ids: Iterable[int], max_len: int) -> None:
        self._prompt = prompt
        self._params = params
        self._ends = frozenset() if params.ignore_eos else frozenset(end_token_ids)
        self._max_tokens = min(params.max_tokens, max_len - len(prompt))
        self._running = [_Running()]
        self._finished: list[Beam] = []

    @property
    def num_wanted(self) -> int:
        """Likeliest tokens of each prompt that are looked at: all ends among them still leave beam_width."""
        return self._params.beam_width + max(self._params.beam_width, len(self._ends))

    def prompts(self) -> list[TokenIds]:
        """Empty when the search is over."""
        return [self._prompt + list(beam.token_ids) for beam in self._running]

    def advance(self, most_likely: Sequence[TokenLogprobs]) -> None:
        """`most_likely`: of each prompt its num_wanted most likely tokens."""
        going_on: list[_Running] = []
        for beam, tokens in zip(self._running, most_likely, strict=True):
            for token, found in tokens.items():
                longer = _Running((*beam.token_ids, token), beam.logprob + found.logprob)
                if token in self._ends:
                    self._finish(longer, "stop")
                else:
                    going_on.append(longer)
        going_on.sort(key=lambda beam: -beam.logprob)
        self._running = going_on[: self._params.beam_width]
        if self._running and len(self._running[0].token_ids) == self._max_tokens:
            for beam in self._running:
                self._finish(beam, "length")
            self._running = []
        if self._running and not self._may_win(self._running[0]):  # nor may the less likely ones, as long as it is
            self._running = []

    def best(self) -> list[Beam]:
        """The beam_width best that have finished, the best first."""
        return self._finished

    def _finish(self, beam: _Running, reason: Literal["stop", "length"]) -> None:
        self._finished.append(Beam(list(beam.token_ids), beam.logprob, reason))
        self._finished.sort(key=lambda finished: -finished.score(self._params.length_penalty))
        del self._finished[self._params.beam_width :]

    def _may_win(self, beam: _Running) -> bool:
        """Log-probabilities only fall: what is the best score that it can still reach?"""
        if len(self._finished) < self._params.beam_width:
            return True
        penalty = self._params.length_penalty
        length = self._max_tokens if penalty > 0 else len(beam.token_ids) + 1
        return _score(beam.logprob, length, penalty) > self._finished[-1].score(penalty)


def beam_search(
    llm: LLM, prompts: Sequence[Prompt], params: BeamSearchParams, *, priority: int = 0
) -> list[list[Beam]]:
    """Searches for likely answers: at each step the beam_width likeliest of all continuations by one token go on.

    Args:
        prompts: strings or lists of token ids; all are searched side by side.
        priority: lower is more urgent.

    Returns for each prompt beam_width answers, the best first: those that ended with an end-of-sequence id, or have
    max_tokens. An end counts where it is among the 2 * beam_width likeliest tokens, as in vLLM. The search is over when
    no beam can become one of the best any more.

    Raises:
        ValueError, TypeError: a prompt or parameter that can never run.
        RequestError: a step failed.
    """
    if not isinstance(params, BeamSearchParams):
        raise TypeError(f"params takes BeamSearchParams, got {shown(params)}")
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise TypeError(f"prompts takes a list of prompts, got {shown(prompts)}")
    searches = [BeamSearch(llm._token_ids(prompt), params, llm._end_token_ids, llm.max_model_len) for prompt in prompts]
    while (steps := [(search, search.prompts()) for search in searches]) and any(asked for _, asked in steps):
        answers = iter(_most_likely(llm, steps, priority))
        for search, asked in steps:
            if asked:
                search.advance([next(answers) for _ in asked])
    return [[_with_text(llm, beam) for beam in search.best()] for search in searches]


def _most_likely(
    llm: LLM, steps: Iterable[tuple[BeamSearch, list[TokenIds]]], priority: int
) -> Iterable[TokenLogprobs]:
    prompts: list[TokenIds] = []
    params: list[SamplingParams] = []
    for search, asked in steps:
        prompts += asked
        logprobs = min(search.num_wanted, llm._running_engine().guide_desk.vocab_size)
        params += [SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, logprobs=logprobs)] * len(asked)
    for completion in llm.generate(prompts, params, use_tqdm=False, priority=priority):
        if completion.error is not None or not completion.logprobs:
            raise RequestError(completion.error or f"it was ended early: {completion.finish_reason}", completion)
        yield completion.logprobs[0]


def _with_text(llm: LLM, beam: Beam) -> Beam:
    tokenizer = llm._tokenizer
    if tokenizer is None:
        return beam
    ids = [token for token in beam.token_ids if token < tokenizer.vocab_size]
    return Beam(beam.token_ids, beam.logprob, beam.finish_reason, tokenizer.decode(ids))

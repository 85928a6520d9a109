# SPDX-License-Identifier: Apache-2.0
"""How a request's tokens are chosen and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_MAX_INT32 = 2**31 - 1


@dataclass(frozen=True)
class SamplingParams:
    """Names and meanings are vLLM's.

    Attributes:
        temperature: 0 is greedy (the lowest id among the largest logits); otherwise logits are divided by it.
        top_p: keep the smallest set of most likely tokens whose probabilities reach it, in (0, 1].
        top_k: keep the k most likely tokens; 0 or -1 keeps all.
        seed: the request's own random stream. The same seed gives the same tokens whatever else runs. None: derived
            from the engine's seed and the order of submission.
        max_tokens: most tokens to generate; None: until the model's context (or the KV pool) is full.
        min_tokens: stop ids do not end the answer before this many tokens.
        stop: a string or strings; the answer ends before the first of them to appear.
        stop_token_ids: ids that end the answer, besides the model's own end-of-sequence ids.
        ignore_eos: go on past the model's end-of-sequence ids.
        include_stop_str_in_output: leave the stop string that was found in the text.

    Raises:
        TypeError, ValueError: naming the field, what arrived and what is allowed.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, 0.0, 1e4)
        _check_number("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise ValueError("top_p must be in (0, 1], got 0; for greedy decoding use temperature=0")
        _check_int("top_k", self.top_k, -1)
        _check_int("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 1)
            if self.min_tokens > self.max_tokens:
                raise ValueError(f"min_tokens ({self.min_tokens}) is larger than max_tokens ({self.max_tokens})")
        if self.seed is not None:
            _check_int("seed", self.seed, -(2**63), 2**64 - 1)
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        for text in stop:
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop takes non-empty strings, got {text!r}")
        stop_token_ids = tuple(self.stop_token_ids)
        for token in stop_token_ids:
            _check_int("stop_token_ids", token, 0)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", stop_token_ids)


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value!r}")


def _check_int(name: str, value: object, low: int, high: int = _MAX_INT32) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {value!r}")

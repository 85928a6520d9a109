# SPDX-License-Identifier: Apache-2.0
"""How a request's tokens are chosen and when it ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from paged.checks import shown
from paged.guide import Guide, LogitsProcessor
from paged.structured import StructuredOutputsParams

LogprobsMode = Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]
Item = TypeVar("Item")

_MAX_INT32 = 2**31 - 1
_MAX_N = 1 << 14
# Each is looked for at every token: these keep it to tens of microseconds.
_MAX_STOPS, _MAX_STOP_LENGTH = 1024, 4096
_MAX_BAD_WORDS = 10_000


@dataclass(frozen=True)
class SamplingParams:
    """Names and meanings are vLLM's.

    Attributes:
        temperature: 0 is greedy (the lowest id among the largest logits); otherwise logits are divided by it.
        top_p: keep the smallest set of most likely tokens whose probabilities reach it, in (0, 1].
        top_k: keep the k most likely tokens; 0 or -1 keeps all.
        min_p: drop tokens less likely than min_p times the most likely one, in [0, 1]; 0 drops none.
        repetition_penalty: logits of tokens in the prompt or the answer are divided by it if positive, else multiplied.
        presence_penalty: subtracted from the logits of tokens in the answer, in [-2, 2].
        frequency_penalty: the same, once for each time the token is in the answer.
        logit_bias: added to the logits of these token ids; held to [-100, 100].
        allowed_token_ids: no other tokens come; None: all.
        bad_words: strings that never come, as the tokens each is made of with and without a space before it. Up to
            10,000.
        n: answers to the same prompt, whose blocks they share; more than one only with a temperature above 0.
        seed: the request's own random stream. The same seed gives the same tokens whatever else runs. None: derived
            from the engine's seed and the order of submission. Of n answers the one with index i has seed + i.
        max_tokens: most tokens to generate; None: until the model's context (or the KV pool) is full.
        min_tokens: no stop id comes before this many tokens, and no stop string counts that is complete by then.
        stop: a string or strings; the answer ends before the first of them to appear. Up to 1024 of 4096 characters.
        stop_token_ids: ids that end the answer, besides the model's own end-of-sequence ids.
        ignore_eos: go on past the model's end-of-sequence ids.
        include_stop_str_in_output: leave in the text what ended it: the stop string, or the stop id's text.
        skip_special_tokens: leave special tokens out of the text.
        structured_outputs: what the whole text must be: JSON of a schema, a match of a regular expression, ... A text
            that max_tokens cuts off is a beginning of it.
        logprobs: give the log-probability of each token, and of this many most likely ones; None: none.
        prompt_logprobs: the same of each token of the prompt but the first.
        prompt_logprobs_start: from this token of the prompt on; what is before it may come from the prefix cache.
        logprobs_mode: "raw_logprobs", of the model's own logits; "processed_logprobs", of what a token is drawn from,
            after all the settings above (of a prompt, always the model's own); or the logits themselves of either.
        guide: makes the `paged.guide.Guide` that says before each token what may come; called once, on another thread.
        logits_processors: called in turn before each token, on another thread, with the tokens generated so far and
            the model's logits, float32 [vocab_size]; each returns the logits to use. All other settings still apply.

    Raises:
        TypeError, ValueError: naming the field, what arrived and what is allowed.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] = ()
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputsParams | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_logprobs_start: int = 1
    logprobs_mode: LogprobsMode = "raw_logprobs"
    guide: Callable[[], Guide] | None = None
    logits_processors: Sequence[LogitsProcessor] = ()

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, 0.0, 1e4)
        _check_int("n", self.n, 1, _MAX_N)
        if self.n > 1 and self.temperature == 0.0:
            raise ValueError(f"n must be 1 with temperature=0, where all answers are the same, got {self.n}")
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
        object.__setattr__(self, "stop", _texts("stop", self.stop, _MAX_STOPS))
        for text in self.stop:
            if len(text) > _MAX_STOP_LENGTH:
                raise ValueError(f"stop takes strings of up to {_MAX_STOP_LENGTH} characters, got {len(text)}")
        object.__setattr__(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {shown(getattr(self, name))}")
        self._check_logits_settings()

    def _check_logits_settings(self) -> None:
        _check_number("min_p", self.min_p, 0.0, 1.0)
        _check_number("repetition_penalty", self.repetition_penalty, 0.0, 1e4)
        if self.repetition_penalty == 0.0:
            raise ValueError("repetition_penalty must be above 0, got 0; 1 is no penalty")
        _check_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if not isinstance(self.logit_bias, Mapping):
            raise TypeError(f"logit_bias must map token ids to numbers, got {shown(self.logit_bias)}")
        biases = dict(self.logit_bias)
        for token, bias in biases.items():
            _check_int("logit_bias", token, 0)
            _check_number(f"logit_bias of token {token}", bias, -1e30, 1e30)
        object.__setattr__(self, "logit_bias", {token: min(max(bias, -100.0), 100.0) for token, bias in biases.items()})
        if self.allowed_token_ids is not None:
            allowed = _token_ids("allowed_token_ids", self.allowed_token_ids)
            if not allowed:
                raise ValueError("allowed_token_ids is empty: no token could come; None allows all")
            object.__setattr__(self, "allowed_token_ids", allowed)
        object.__setattr__(self, "bad_words", _texts("bad_words", self.bad_words, _MAX_BAD_WORDS))
        if self.structured_outputs is not None:
            if not isinstance(self.structured_outputs, StructuredOutputsParams):
                raise TypeError(
                    f"structured_outputs takes StructuredOutputsParams, got {shown(self.structured_outputs)}"
                )
            if self.guide is not None:
                raise ValueError("structured_outputs and guide both say what may come next: give one of them")
        if self.logprobs is not None:
            _check_int("logprobs", self.logprobs, 0)
        if self.prompt_logprobs is not None:
            _check_int("prompt_logprobs", self.prompt_logprobs, 0)
        _check_int("prompt_logprobs_start", self.prompt_logprobs_start, 1)
        if self.logprobs_mode not in get_args(LogprobsMode):
            raise ValueError(
                f"logprobs_mode must be one of {', '.join(get_args(LogprobsMode))}, got {shown(self.logprobs_mode)}"
            )
        object.__setattr__(self, "logits_processors", _items("logits_processors", self.logits_processors))
        for callback in (*([] if self.guide is None else [self.guide]), *self.logits_processors):
            if not callable(callback):
                raise TypeError(f"guide and logits_processors take callables, got {shown(callback)}")


def _items(name: str, given: Iterable[Item]) -> tuple[Item, ...]:
    if not isinstance(given, Iterable) or isinstance(given, str | bytes | bytearray):
        raise TypeError(f"{name} takes a list, got {shown(given)}")
    return tuple(given)


def _texts(name: str, given: str | Sequence[str], max_count: int) -> tuple[str, ...]:
    texts = (given,) if isinstance(given, str) else _items(name, given)
    if len(texts) > max_count:
        raise ValueError(f"{name} takes up to {max_count} strings, got {len(texts)}")
    for text in texts:
        if not isinstance(text, str) or not text:
            raise ValueError(f"{name} takes non-empty strings, got {shown(text)}")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"{name} takes valid Unicode, got a lone surrogate in {shown(text)}")
    return texts


def of_each_answer(params: SamplingParams) -> list[SamplingParams]:
    """Of the n answers. The prompt is scored once."""
    if params.n == 1:
        return [params]
    return [
        dataclasses.replace(
            params,
            n=1,
            seed=None if params.seed is None else (params.seed + index) % 2**64,
            prompt_logprobs=params.prompt_logprobs if index == 0 else None,
        )
        for index in range(params.n)
    ]


def _token_ids(name: str, given: Sequence[int]) -> tuple[int, ...]:
    ids = _items(name, given)
    for token in ids:
        _check_int(name, token, 0)
    return ids


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {shown(value)}")


def _check_int(name: str, value: object, low: int, high: int = _MAX_INT32) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {shown(value)}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {shown(value)}")


# The keys of a generation_config that are settings of SamplingParams.
_DEFAULTS_OF = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


def default_sampling_params(generation_config: Mapping[str, Any]) -> SamplingParams:
    """As a model's generation_config asks for; null and other keys count as absent.

    Raises ValueError, naming the file, for a value that SamplingParams refuses.
    """
    settings = {
        ours: generation_config[theirs]
        for theirs, ours in _DEFAULTS_OF.items()
        if generation_config.get(theirs) is not None
    }
    try:
        return SamplingParams(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"generation_config: {error}; generation_config='none' ignores it") from error

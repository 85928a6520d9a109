# SPDX-License-Identifier: Apache-2.0
"""What a request gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from paged.text.tool_calls import ToolCall

FinishReason = Literal["stop", "length", "cancelled", "error"]


class Logprob(NamedTuple):
    """Of one token at one position: its value, as `SamplingParams.logprobs_mode` says, and how many tokens are at least
    as likely there, itself included."""

    logprob: float
    rank: int


TokenLogprobs = dict[int, Logprob]
"""By token id: the token that is there, first, and the most likely ones in falling order."""


@dataclass(frozen=True)
class Timings:
    """Seconds since the request was submitted; None for what did not happen.

    Attributes:
        queued_seconds: when the first step with it was planned.
        first_token_seconds, total_seconds: when its first token came, and its end.
        token_seconds: float32 [number of tokens] when each came.
    """

    queued_seconds: float | None
    first_token_seconds: float | None
    total_seconds: float | None
    token_seconds: npt.NDArray[np.float32] = field(repr=False, compare=False)

    @property
    def seconds_per_token(self) -> float | None:
        """The mean between tokens; None for fewer than two."""
        count = len(self.token_seconds)
        return float(self.token_seconds[-1] - self.token_seconds[0]) / (count - 1) if count > 1 else None


@dataclass(frozen=True)
class Chunk:
    """What has come since the last chunk of a stream: whole characters only, several tokens when the reader lags.

    `logprobs` are of each of token_ids, if `SamplingParams.logprobs` asked for them; `index` says to which of
    `SamplingParams.n` answers it belongs."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    index: int = 0


@dataclass(frozen=True)
class Completion:
    """A finished request.

    Attributes:
        text: the tokens' text, without special tokens, cut before a stop string.
        token_ids: every generated id, a stop token included.
        finish_reason: "stop" (a stop id or string), "length" (max_tokens, context or pool), "cancelled", "error".
        num_prompt_tokens: length of the prompt; num_cached_tokens of them came from the prefix cache.
        timings: seconds to the first token and to the end.
        error: what went wrong if finish_reason is "error".
        tool_calls: of a chat with tools; `text` is what stands outside of them.
        logprobs: of each of token_ids, if `SamplingParams.logprobs` asked for them.
        prompt_logprobs: of each token of the prompt, if asked for; None where there is none, as for the first token.
        others: the answers after the first one, if `SamplingParams.n` asked for several.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_cached_tokens: int
    timings: Timings
    error: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    others: list[Completion] = field(default_factory=list)

    @property
    def outputs(self) -> list[Completion]:
        """All `SamplingParams.n` answers, itself first."""
        return [self, *self.others]

    @property
    def cumulative_logprob(self) -> float | None:
        """The sum over token_ids; None unless logprobs were asked for."""
        if self.logprobs is None:
            return None
        return sum(of_token[token].logprob for token, of_token in zip(self.token_ids, self.logprobs, strict=True))

    def __str__(self) -> str:
        return self.text


class RequestError(RuntimeError):
    """The one request failed, and no other; `completion` has what had come until then."""

    def __init__(self, message: str, completion: Completion) -> None:
        super().__init__(message)
        self.completion = completion

    def __reduce__(self) -> tuple[type[RequestError], tuple[str, Completion]]:
        return type(self), (str(self), self.completion)

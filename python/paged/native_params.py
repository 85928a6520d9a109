# SPDX-License-Identifier: Apache-2.0
"""`SamplingParams` as the engine takes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from paged import _C
from paged.sampling import SamplingParams

if TYPE_CHECKING:
    from paged.text.tokenizer import Tokenizer

_MAX_INT32 = 2**31 - 1


def native_params(
    params: SamplingParams, *, seed: int, end_token_ids: frozenset[int], tokenizer: Tokenizer | None
) -> _C.SamplingParams:
    """Raises ValueError for bad_words without a tokenizer."""
    native = _C.SamplingParams()
    for name in (
        "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
        "min_tokens", "include_stop_str_in_output", "skip_special_tokens",
    ):  # fmt: skip
        setattr(native, name, getattr(params, name))
    native.seed = seed
    native.logit_bias = list(params.logit_bias.items())
    native.allowed_token_ids = params.allowed_token_ids or ()
    if params.bad_words:
        if tokenizer is None:
            raise ValueError("bad_words needs a tokenizer, and this model has none")
        native.bad_words = [list(ids) for ids in bad_word_token_ids(params.bad_words, tokenizer)]
    native.num_logprobs = -1 if params.logprobs is None else params.logprobs
    native.num_prompt_logprobs = -1 if params.prompt_logprobs is None else params.prompt_logprobs
    native.first_prompt_logprob = params.prompt_logprobs_start
    native.logprobs_mode = params.logprobs_mode
    native.max_tokens = params.max_tokens or _MAX_INT32
    ends: frozenset[int] = frozenset() if params.ignore_eos else end_token_ids
    native.stop_token_ids = sorted(ends.union(params.stop_token_ids))
    native.stop = [text.encode() for text in params.stop]
    return native


def bad_word_token_ids(words: Iterable[str], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The tokens of each word at the beginning of a text and, where a space before it changes the first token but not
    their number, inside of one: vLLM's rule."""
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = tuple(tokenizer.encode(word.lstrip(), add_special_tokens=False))
        spaced = tuple(tokenizer.encode(" " + word.lstrip(), add_special_tokens=False))
        if bare:
            found[bare] = None
        if spaced and len(spaced) == len(bare) and spaced[0] != bare[0]:
            found[spaced] = None
    return list(found)

# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments, and how one that is refused is shown in the error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_LONGEST = 80
_MAX_INT32 = 2**31 - 1


def shown(value: object) -> str:
    """Its `repr`, cut off; of what has none (an integer of 5000 digits, lists without end, a repr of its own that
    raises) the type. Never raises."""
    if isinstance(value, str | bytes | bytearray):
        value = value[: _LONGEST + 1]  # the repr of a long text is as long
    try:
        text = repr(value)
    except Exception:
        return f"a value of type {type(value).__name__} that cannot be shown"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def is_single(prompts: object) -> bool:
    """Whether it is one prompt and not a list of them."""
    if isinstance(prompts, str):
        return True
    if not isinstance(prompts, Sequence):
        raise TypeError(f"prompts must be a string, token ids, or a list of either, got {shown(prompts)}")
    return isinstance(prompts, bytes | bytearray) or (len(prompts) > 0 and isinstance(prompts[0], int))


def checked_token_ids(prompt: object) -> list[int]:
    """A prompt that is no string."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):
        raise TypeError(f"a prompt is a string or a list of token ids, got {shown(prompt)}")
    token_ids = list(prompt)
    for index, token in enumerate(token_ids):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token <= _MAX_INT32:
            raise ValueError(f"a prompt is a string or a list of token ids, got {shown(token)} at position {index}")
    return token_ids


def check_priority(priority: object) -> None:
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise TypeError(f"priority must be an integer, got {shown(priority)}")
    if not -(2**31) <= priority <= _MAX_INT32:
        raise ValueError(f"priority must be in [{-(2**31)}, {_MAX_INT32}], got {shown(priority)}")


def one_for_each(name: str, given: Any, count: int) -> list[Any]:
    """`given` is one for each of `count` prompts, or one for all."""
    if isinstance(given, Sequence):
        if len(given) != count:
            raise ValueError(f"{count} prompts, but {len(given)} {name}")
        return list(given)
    return [given] * count

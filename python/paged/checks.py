# SPDX-License-Identifier: Apache-2.0
"""How an argument that is refused is shown in the error."""

from __future__ import annotations

_LONGEST = 80


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

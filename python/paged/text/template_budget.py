# SPDX-License-Identifier: Apache-2.0
"""What one rendering of a chat template may spend: a count of characters and steps, the same on every machine.

Every loop round, macro call, operation and filter is charged with the size of what it reads or makes, before it makes
it where that can be large. Time and memory follow: a few seconds and some hundred megabytes for the worst found.
"""

from __future__ import annotations

import re
from typing import Any

from jinja2.exceptions import SecurityError

STEP = 512  # what a step costs; a character costs 1
_BUDGET = 1 << 27
_PER_CHARACTER = 64  # more, for each of what is rendered
_PER_ITEM = 16
_MAX_WIDTH = 1000
_WIDTH = re.compile(r"\d{4,}|\*|:[^}]*\{")  # one written out, or taken from the arguments
_PADDING = frozenset(["center", "expandtabs", "ljust", "rjust", "zfill"])
KEY = " budget"  # in a template's context: no name in a template can have a space


class Budget:
    """Of one rendering, in one thread."""

    def __init__(self, data: Any) -> None:
        """`data`: what is rendered; more of it may take more."""
        self._left = self._total = 1 << 62
        self._left = self._total = _BUDGET + _PER_CHARACTER * self.written(data)

    def charge(self, cost: int) -> None:
        """Raises SecurityError once it is spent."""
        self._left -= cost
        if self._left < 0:
            raise SecurityError(f"the chat template takes more than {self._total // STEP} steps")

    def made(self, value: Any) -> Any:
        """`value`, charged by its own size."""
        if isinstance(value, str):
            self.charge(len(value))
        elif isinstance(value, list | tuple | dict | set):
            self.charge(STEP + _PER_ITEM * len(value))
        return value

    def written(self, value: Any) -> int:
        """Charges what it takes to write `value` out, containers with all that is in them. Returns that size."""
        size = len(value) if isinstance(value, str) else STEP
        self.charge(size)
        if isinstance(value, dict):
            size += sum(self.written(key) + self.written(item) for key, item in value.items())
        elif isinstance(value, list | tuple | set):
            size += sum(map(self.written, value))
        return size

    def read(self, value: Any) -> Any:
        """`value`, charged for looking through it: comparing, searching."""
        if isinstance(value, str):
            self.charge(STEP + len(value) // 8)
        elif isinstance(value, list | tuple | dict | set):
            self.written(value)
        return value

    def operation(self, operator: str, left: Any, right: Any) -> None:
        """Before `left operator right`."""
        if operator == "**" and not all(isinstance(n, int | float) and abs(n) <= 1024 for n in (left, right)):
            raise SecurityError("a chat template may not raise large numbers to a power")
        if operator == "%" and isinstance(left, str):
            self.format(left, right)
        sizes = [len(value) if isinstance(value, str | list | tuple) else None for value in (left, right)]
        if operator == "*" and any(sizes):
            repeated, times = (left, right) if sizes[0] is not None else (right, left)
            if isinstance(times, int):
                self.charge(max(0, times) * self._weight(repeated))
        elif operator == "*" and all(isinstance(n, int) for n in (left, right)):
            self.charge(left.bit_length() * right.bit_length() // 64)
        elif operator == "+":
            self.charge(STEP + sum(self._weight(value) for value in (left, right)))

    def method(self, text: str, name: str, arguments: tuple[Any, ...]) -> None:
        """Before a method of a string."""
        self.charge(STEP + len(text))
        if name in _PADDING and any(isinstance(n, int) and n > _MAX_WIDTH for n in arguments):
            raise SecurityError(f"a chat template may not pad text to more than {_MAX_WIDTH} characters")
        if name.endswith("split") or name == "splitlines":
            separator = next((a for a in arguments if isinstance(a, str) and a), None)
            self.charge(STEP * text.count(separator) if separator else _PER_ITEM * len(text))
        if name == "replace" and len(arguments) >= 2:
            self.replacement(text, *arguments[:2])
        if name == "join" and arguments:
            self.joining(text, arguments[0])

    def replacement(self, text: Any, old: Any, new: Any) -> None:
        size = self.written(text)
        self.charge((size if not old else str(text).count(str(old)) + 1) * self.written(new))

    def joining(self, separator: Any, items: Any) -> None:
        if hasattr(items, "__len__"):
            self.charge(len(items) * (STEP + len(str(separator))) + self.written(list(items)))

    def format(self, pattern: str, arguments: Any) -> None:
        """Before filling in a pattern: widths in it would make text out of nothing."""
        if _WIDTH.search(pattern):
            raise SecurityError(f"a chat template may not format text to {_MAX_WIDTH} characters or more")
        self.charge(len(pattern) + (pattern.count("%") + pattern.count("{")) * self.written(arguments))

    @staticmethod
    def _weight(value: Any) -> int:
        return len(value) if isinstance(value, str) else _PER_ITEM * len(value) if hasattr(value, "__len__") else 1

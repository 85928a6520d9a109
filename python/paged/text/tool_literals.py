# SPDX-License-Identifier: Apache-2.0
"""Calls written in Python's syntax, `[f(a=1), g(b=["x", None])]`, read without running or compiling anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_MAX_DEPTH = 64
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | (?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    | (?P<name>[^\W\d]\w*(?:\.[^\W\d]\w*)*)
    | (?P<mark>[\[\](){},:=])
    )""",
    re.VERBOSE | re.DOTALL,
)
_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"', "b": "\b", "f": "\f", "/": "/", "\n": ""}
_ESCAPE = re.compile(
    r"\\(?:u([0-9a-fA-F]{4})|U(000[0-9a-fA-F]{5}|0010[0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL
)


class LiteralSyntaxError(ValueError):
    """The text is no list of calls with literal arguments."""


def parse_python_calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, arguments) of each call of a non-empty list. Arguments have names and JSON-like values.

    Raises LiteralSyntaxError.
    """
    reader = _Reader(text)
    reader.take("[")
    calls = list(reader.items("]", reader.call))
    reader.expect_end()
    if not calls:
        raise LiteralSyntaxError("an empty list")
    return calls


class _Reader:
    """Recursive descent over tokens; `depth` bounds it."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._position = 0
        self._depth = 0

    def take(self, mark: str | None = None) -> str:
        """The next token, which must be `mark` if that is given."""
        if self._position == len(self._tokens) or mark not in (None, self._tokens[self._position]):
            raise LiteralSyntaxError(f"expected {mark or 'a value'} at token {self._position}")
        self._position += 1
        return self._tokens[self._position - 1]

    def expect_end(self) -> None:
        if self._position != len(self._tokens):
            raise LiteralSyntaxError("text after the list")

    def items(self, end: str, read: Any) -> Iterator[Any]:
        """Comma-separated things up to `end`; a comma may come last."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise LiteralSyntaxError("nested too deeply")
        while not self._next_is(end):
            yield read()
            if not self._next_is(end):
                self.take(",")
        self.take(end)
        self._depth -= 1

    def call(self) -> tuple[str, dict[str, Any]]:
        name = self._name()
        self.take("(")
        return name, dict(self.items(")", self._argument))

    def _argument(self) -> tuple[str, Any]:
        name = self._name()
        self.take("=")
        return name, self._value()

    def _entry(self) -> tuple[str, Any]:
        key = self._value()
        self.take(":")
        if not isinstance(key, str):
            raise LiteralSyntaxError("a key that is no string")
        return key, self._value()

    def _name(self) -> str:
        token = self.take()
        if not (token[0].isalpha() or token[0] == "_"):
            raise LiteralSyntaxError(f"expected a name, got {token[:40]!r}")
        return token

    def _value(self) -> Any:
        token = self.take()
        if token in ("[", "("):
            return list(self.items("]" if token == "[" else ")", self._value))
        if token == "{":
            return dict(self.items("}", self._entry))
        if token[0] in "'\"":
            text = _ESCAPE.sub(_unescape, token[1:-1])
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # joins pairs of surrogates
        if token in _WORDS:
            return _WORDS[token]
        try:
            return int(token) if re.fullmatch(r"-?\d+", token) else _finite(token)
        except ValueError as error:
            raise LiteralSyntaxError(f"expected a literal, got {token[:40]!r}") from error

    def _next_is(self, mark: str) -> bool:
        return self._position < len(self._tokens) and self._tokens[self._position] == mark


def _tokens(text: str) -> Iterator[str]:
    position, text = 0, text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise LiteralSyntaxError(f"unexpected {text[position : position + 20]!r}")
        yield match[match.lastgroup or 0]
        position = match.end()


def _finite(token: str) -> float:
    value = float(token)
    if value in (float("inf"), float("-inf")):
        raise ValueError("too large")
    return value


def _unescape(match: re.Match[str]) -> str:
    """What is no escape stays as it is, backslash included, as in Python."""
    code = match[1] or match[2] or match[3]
    if code:
        return chr(int(code, 16))
    return _ESCAPES.get(match[4], match[0])

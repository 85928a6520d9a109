# SPDX-License-Identifier: Apache-2.0
"""Finds tool calls in text as it comes.

Text outside of calls leaves at once, but for what may turn out to be the beginning of a marker and for white space,
which belongs to a call if it stands next to one. What looks like a call and is none leaves as text. The result depends
on the text alone, not on how it was cut into pieces; the work is linear in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import Literal

from paged.text.tool_calls import Found, ToolCall, ToolFormat, new_call_id

_MAX_BODY = 1 << 20
_MAX_HEADER = 256
_JSON_MARKS = re.compile(r'["{}\[\]]')
_PYTHON_MARKS = re.compile(r"""["'(){}\[\]]""")
_STRING_ENDS = {quote: re.compile(rf"[{quote}\\]") for quote in "\"'"}

Piece = str | ToolCall


class ToolCallParser:
    """Takes text, gives text and calls in their order. One for each answer."""

    def __init__(
        self,
        format: ToolFormat,
        names: Collection[str],
        *,
        hidden: Iterable[str] = (),
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        """
        Args:
            names: the tools' names. A call without a marker must be to one of them.
            hidden: texts to leave out, such as those of special tokens.
            new_id: makes the ids of calls that come without one.
        """
        self._format = format
        self._names = frozenset(names)
        self._new_id = new_id
        hidden = frozenset(text for text in hidden if text) - set(format.markers)
        self._hidden = hidden
        words = sorted({*format.markers, *hidden}, key=len, reverse=True)
        self._words = re.compile("|".join(map(re.escape, words)) or r"(?!)")
        self._beginnings = frozenset(word[:length] for word in words for length in range(1, len(word)))
        self._longest = max(map(len, words), default=1) - 1
        self._pending = ""  # not looked at yet, or what may begin a marker
        self._spaces: list[str] = []  # white space that came last: part of the call if one comes next
        self._state: Literal["start", "text", "header", "body", "after"] = "start"
        self._marker = ""
        self._header = ""
        self._body = _Body(python=format.python)
        self._out: list[Piece] = []

    def feed(self, text: str) -> list[Piece]:
        """What `text` completes; neighbouring strings belong together."""
        self._pending += text
        return self._advance(final=False)

    def finish(self) -> list[Piece]:
        """What is left once the text is complete."""
        return self._advance(final=True)

    def _advance(self, final: bool) -> list[Piece]:
        states = {"start": self._start, "text": self._text, "header": self._read_header, "body": self._read_body}
        states["after"] = self._after
        while states[self._state](final):
            pass
        if final:
            self._out += self._spaces
            self._spaces = []
        out, self._out = self._out, []
        return _merged(out)

    # Each of these is a state. It returns whether another, or it once more, can go on with what is pending.

    def _start(self, final: bool) -> bool:
        """The answer begins, or a separator has come: a bare call may stand here."""
        self._take_spaces()
        if not self._pending:
            return False
        if self._pending[0] in self._format.opens_bare:
            self._marker, self._state = "", "header"
        else:
            self._state = "text"
        return True

    def _text(self, final: bool) -> bool:
        match = self._words.search(self._pending)
        if match is None:
            keep = 0 if final else self._beginning_at_end()
            self._emit(self._pending[: len(self._pending) - keep])
            self._pending = self._pending[len(self._pending) - keep :]
            return False
        self._emit(self._pending[: match.start()])
        self._pending = self._pending[match.end() :]
        if match[0] not in self._hidden:
            self._marker, self._state = match[0], "header"
        return True

    def _beginning_at_end(self) -> int:
        """Length of the longest end of what is pending that may become a word."""
        longest = min(self._longest, len(self._pending))
        return next((n for n in range(longest, 0, -1) if self._pending[-n:] in self._beginnings), 0)

    def _read_header(self, final: bool) -> bool:
        """Up to the bracket that opens the body."""
        text = self._header + self._pending
        opening = self._opening(text)
        end = len(text) if opening is None else opening
        blank = not text[:end].strip()
        if end > _MAX_HEADER or not (blank or self._format.named_header):
            return self._no_header(text)
        if opening is None:
            self._header, self._pending = text, ""
            return self._no_header(text) if final else False
        self._header, self._pending = text[:opening], text[opening:]
        self._body, self._state = _Body(python=self._format.python), "body"
        return True

    def _opening(self, text: str) -> int | None:
        """Where the body begins: the first `{`, or any opening bracket if nothing but white space comes before."""
        first = len(text) - len(text.lstrip())
        if first < len(text) and text[first] in self._format.opens_body:
            return first
        found = text.find("{") if "{" in self._format.opens_body else -1
        return None if found < 0 else found

    def _no_header(self, text: str) -> bool:
        """The marker was a word like others; what follows it may hold another."""
        self._emit(self._marker)
        self._pending, self._header, self._state = text, "", "text"
        return True

    def _read_body(self, final: bool) -> bool:
        end = self._body.feed(self._pending)
        if end is None and not final:
            self._pending = ""
            return False
        self._pending = "" if end is None else self._pending[end:]
        body = self._body.text()
        found = self._format.parse(self._header, body) if self._body.closed else None
        if found and self._accepts(found):
            self._out += [ToolCall(call.name, call.arguments, call.id or self._new_id()) for call in found]
            self._spaces, self._state = [], "after"
        else:
            self._emit(self._marker + self._header + body)
            self._state = "text"
        self._header = ""
        return True

    def _accepts(self, found: list[Found]) -> bool:
        return bool(self._marker) or all(call.name in self._names for call in found)

    def _after(self, final: bool) -> bool:
        """White space and what closes a call go with it."""
        self._take_spaces()
        self._spaces = []
        word = self._format.closes or self._format.separator
        if not self._pending or (word.startswith(self._pending) and word != self._pending and not final):
            return False
        if not word or not self._pending.startswith(word):
            self._state = "text"
            return True
        self._pending = self._pending[len(word) :]
        if self._format.separator:
            self._spaces, self._state = [word], "start"  # it goes with the next call, if one comes
        return True

    def _take_spaces(self) -> None:
        stripped = self._pending.lstrip()
        self._spaces.append(self._pending[: len(self._pending) - len(stripped)])
        self._pending = stripped

    def _emit(self, text: str) -> None:
        """White space at the end waits for what comes next."""
        core = text.rstrip()
        if core:
            self._out += [*self._spaces, core]
            self._spaces = []
        self._spaces.append(text[len(core) :])


class _Body:
    """Collects a text in brackets, quoted strings looked through, up to the bracket that closes the first."""

    def __init__(self, *, python: bool) -> None:
        self._marks = _PYTHON_MARKS if python else _JSON_MARKS
        self._parts: list[str] = []
        self._size = 0
        self._depth = 0
        self._quote = ""
        self._escaped = False

    @property
    def closed(self) -> bool:
        return bool(self._parts) and self._depth == 0

    def text(self) -> str:
        return "".join(self._parts)

    def feed(self, text: str) -> int | None:
        """How much of `text` still belongs to it; None: all of it, and it goes on. Too long a body ends unclosed."""
        room = _MAX_BODY - self._size
        end = self._scan(text[:room])
        taken = text[:room] if end is None else text[:end]
        self._parts.append(taken)
        self._size += len(taken)
        return end if end is not None else room if len(text) > room else None

    def _scan(self, text: str) -> int | None:
        position = 0
        while position < len(text):
            if self._escaped:
                self._escaped, position = False, position + 1
                continue
            match = (_STRING_ENDS[self._quote] if self._quote else self._marks).search(text, position)
            if match is None:
                return None
            position = match.end()
            self._step(match[0])
            if self._depth == 0:
                return position
        return None

    def _step(self, mark: str) -> None:
        if mark == "\\":
            self._escaped = True
        elif mark in "\"'":
            self._quote = "" if self._quote else mark
        else:
            self._depth += 1 if mark in "([{" else -1


def _merged(pieces: list[Piece]) -> list[Piece]:
    """Neighbouring texts as one, empty ones left out."""
    merged: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and merged and isinstance(merged[-1], str):
            merged[-1] += piece
        elif piece:
            merged.append(piece)
    return merged

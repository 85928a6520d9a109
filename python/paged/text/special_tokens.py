# SPDX-License-Identifier: Apache-2.0
"""Finds special tokens in text, for tokenizer backends that do not do it themselves."""

import re
from collections.abc import Iterator, Mapping


class SpecialTokens:
    """Splits text at special tokens, the leftmost and there the longest first. Linear in the text."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        """`ids`: the text of each special token, not empty -> its id."""
        self._ids = dict(ids)
        self._lengths = sorted({len(token) for token in self._ids}, reverse=True)
        starts = "".join(sorted({token[0] for token in self._ids}))
        self._start = re.compile(f"[{re.escape(starts)}]") if starts else None

    def split(self, text: str) -> Iterator[str | int]:
        """Stretches of plain text, none empty, and the ids of the special tokens between them."""
        begin = position = 0
        while self._start and (match := self._start.search(text, position)):
            position = match.start()
            token = self._token_at(text, position)
            if token is None:
                position += 1
                continue
            if begin < position:
                yield text[begin:position]
            yield self._ids[token]
            begin = position = position + len(token)
        if begin < len(text):
            yield text[begin:]

    def _token_at(self, text: str, position: int) -> str | None:
        candidates = (text[position : position + length] for length in self._lengths)
        return next((candidate for candidate in candidates if candidate in self._ids), None)

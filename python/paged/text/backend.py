# SPDX-License-Identifier: Apache-2.0
"""What a tokenizer library is reduced to."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from paged.text.token_bytes import TokenBytes


class Encoder(Protocol):
    """Text to ids; special tokens spelled out in the text become their ids."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...


class LateEncoder:
    """Made when the first text is encoded: what takes token ids and gives text needs only the bytes of the tokens.
    Safe to use from any thread. What making it raises, every call raises."""

    def __init__(self, make: Callable[[], Encoder]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._encoder: Encoder | None = None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        with self._lock:
            if self._encoder is None:
                self._encoder = self._make()
                del self._make  # and what it was made of
        return self._encoder.encode(text, add_special_tokens)


@dataclass(frozen=True, eq=False, slots=True)
class Backend:
    """`strips_leading_space`: encoding puts a space in front of text, so decoding drops the one it begins with."""

    encoder: Encoder
    token_bytes: TokenBytes
    strips_leading_space: bool = False

# SPDX-License-Identifier: Apache-2.0
"""What a tokenizer library is reduced to."""

from dataclasses import dataclass
from typing import Protocol

from paged.text.token_bytes import TokenBytes


class Encoder(Protocol):
    """Text to ids; special tokens spelled out in the text become their ids."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...


@dataclass(frozen=True, eq=False, slots=True)
class Backend:
    """`strips_leading_space`: encoding puts a space in front of text, so decoding drops the one it begins with."""

    encoder: Encoder
    token_bytes: TokenBytes
    strips_leading_space: bool = False

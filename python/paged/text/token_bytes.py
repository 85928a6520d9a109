# SPDX-License-Identifier: Apache-2.0
"""The bytes each token stands for: all that turning ids into text needs.

The text of tokens is, by definition, their bytes one after the other, read as UTF-8 with every invalid sequence
replaced. Two spellings of bytes are in use: byte-level (GPT-2: each byte has a printable character of its own) and
sentencepiece's (U+2581 for a space, <0xE2> for a single byte).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_SPACE = "▁"
_ALPHABET_END = 0x144  # the first character after the byte-level alphabet
_FOREIGN = 256


@dataclass(frozen=True, eq=False, slots=True)
class TokenBytes:
    """Token i is `blob[offsets[i]:offsets[i + 1]]`; a special token's bytes are its text."""

    blob: bytes
    offsets: npt.NDArray[np.int32]  # [number of tokens + 1]
    is_special: npt.NDArray[np.bool_]  # [number of tokens]

    @classmethod
    def of(cls, pieces: Sequence[bytes], special: Iterable[int]) -> "TokenBytes":
        """`special`: ids, all below len(pieces)."""
        return cls._joined(b"".join(pieces), np.fromiter(map(len, pieces), np.int64, len(pieces)), special)

    @classmethod
    def _joined(cls, blob: bytes, sizes: npt.NDArray[np.int64], special: Iterable[int]) -> "TokenBytes":
        offsets = np.zeros(len(sizes) + 1, np.int32)
        np.cumsum(sizes, out=offsets[1:])
        is_special = np.zeros(len(sizes), np.bool_)
        is_special[list(special)] = True
        return cls(blob, offsets, is_special)

    def __len__(self) -> int:
        return len(self.is_special)

    def __getitem__(self, token: int) -> bytes:
        return self.blob[self.offsets[token] : self.offsets[token + 1]]

    def join(self, token_ids: Iterable[int], skip_special_tokens: bool) -> bytes:
        """Raises IndexError on an id that is no token."""
        return b"".join(self[token] for token in token_ids if not (skip_special_tokens and self.is_special[token]))


def byte_level_alphabet() -> str:
    """256 characters: the one that stands for each byte (GPT-2, bytes_to_unicode)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = iter(range(0x100, 0x200))
    return "".join(chr(byte) if byte in printable else chr(next(spare)) for byte in range(256))


def byte_level_table(tokens: Sequence[str], special: Iterable[int]) -> TokenBytes:
    """A token with any character outside the alphabet is its own text, as in `tokenizers`."""
    byte_of = np.full(_ALPHABET_END + 1, _FOREIGN, np.uint16)
    byte_of[[ord(character) for character in byte_level_alphabet()]] = np.arange(256)
    characters = np.frombuffer("".join(tokens).encode("utf-32-le"), np.uint32)
    mapped = byte_of[np.minimum(characters, _ALPHABET_END)]
    blob = mapped.astype(np.uint8).tobytes()
    sizes = np.fromiter(map(len, tokens), np.int64, len(tokens))
    ends = np.cumsum(sizes)
    parts, position = [], 0
    foreign = np.searchsorted(ends, np.flatnonzero(mapped == _FOREIGN), side="right").tolist()
    for index in dict.fromkeys(foreign):  # np.unique would import numpy.ma
        text = tokens[index].encode()
        parts += [blob[position : ends[index] - sizes[index]], text]
        position, sizes[index] = ends[index], len(text)
    return TokenBytes._joined(b"".join([*parts, blob[position:]]), sizes, special)


def sentencepiece_pieces(tokens: Sequence[str], byte_fallback: bool) -> list[bytes]:
    """With `byte_fallback`, a token spelled <0x00> to <0xFF> is that byte."""
    pieces = [token.replace(_SPACE, " ").encode() for token in tokens]
    if byte_fallback:
        byte_of = {b"<0x%02X>" % byte: bytes([byte]) for byte in range(256)}
        pieces = [byte_of.get(piece, piece) for piece in pieces]
    return pieces

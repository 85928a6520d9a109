# SPDX-License-Identifier: Apache-2.0
"""Writes sentencepiece's model format, so that its own code runs a vocabulary that came in another file.

The format is a protobuf (sentencepiece, src/sentencepiece_model.proto); the few fields needed are encoded here. A
protobuf may be extended by appending: a later field overrides an earlier one, which `without_prefix` uses.
"""

import struct
from collections.abc import Sequence

# The types of a piece, the same in GGUF's tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_BPE = 2


def model(pieces: Sequence[str], scores: Sequence[float], types: Sequence[int], unknown_id: int) -> bytes:
    """A BPE model that takes text as it is: nothing is normalised, no space is put in front.

    All three sequences have one element a token; `types[unknown_id]`, and no other, must be UNKNOWN.
    """
    parts = []
    for piece, score, type in zip(pieces, scores, types, strict=True):
        text = piece.encode()
        body = b"\x0a" + _varint(len(text)) + text + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(type)
        parts.append(b"\x0a" + _varint(len(body)) + body)
    trainer = _number(3, _BPE) + _number(35, BYTE in types) + _number(40, unknown_id)
    normalizer = _number(3, False) + _number(4, False) + _number(5, True)  # prefix, squeeze spaces, escape spaces
    return b"".join(parts) + _message(2, trainer) + _message(3, normalizer)


def without_prefix(serialized: bytes) -> bytes:
    """The same model, but it puts no space in front of text."""
    return serialized + _message(3, _number(3, False))


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    return bytes((number & 0x7F | 0x80,)) + _varint(number >> 7)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(body)) + body

# SPDX-License-Identifier: Apache-2.0
"""Encoding with the `tokenizers` library: tokenizer.json.

Its decoder is not run but read: it says how tokens spell bytes. Decoders that are not plain concatenation of bytes
(WordPiece, CTC, ...) are refused, because text could not be streamed as the engine does it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paged.loading.errors import CheckpointError
from paged.loading.model_folder import file_in, parse_json
from paged.text.backend import Backend, Encoder, LateEncoder
from paged.text.byte_level_json import ByteLevelTokens, byte_level_tokens
from paged.text.token_bytes import TokenBytes, byte_level_table, sentencepiece_pieces

if TYPE_CHECKING:
    import tokenizers

_MAX_BYTES = 256 << 20
_MAX_TOKENS = 1 << 22
_SPACE = "▁"


@contextmanager
def library_errors(where: str) -> Iterator[None]:
    """Turns what `tokenizers` raises on a bad model into CheckpointError: plain Exceptions, and panics of its Rust
    code, which are no Exceptions and have no importable type.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise CheckpointError(f"{where}: tokenizers refuses it: {error}") from error
        raise


class TokenizersEncoder:
    def __init__(self, tokenizer: tokenizers.Tokenizer, where: str) -> None:
        self._tokenizer = tokenizer
        self._where = where

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        with library_errors(self._where):
            token_ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
            return token_ids


@dataclass(frozen=True, slots=True)
class Spelling:
    """How tokens spell bytes."""

    byte_level: bool = False
    byte_fallback: bool = False
    strips_leading_space: bool = False


def load_tokenizers(folder: Path) -> Backend:
    """Raises CheckpointError if tokenizer.json is broken or its decoder is not supported."""
    path = file_in(folder, "tokenizer.json")
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise CheckpointError(f"{path}: expected a tokenizer.json of at most {_MAX_BYTES} bytes")
    data, where = path.read_bytes(), str(path)
    tokens = byte_level_tokens(parse_json(data, where)) if b'"ByteLevel"' in data else None
    if tokens is None:
        return _eager_backend(_read(data, where), where)
    return Backend(LateEncoder(partial(_byte_level_encoder, data, tokens, where)), tokens.table)


def _byte_level_encoder(data: bytes, tokens: ByteLevelTokens, where: str) -> Encoder:
    tokenizer = _read(data, where)
    added = {text: tokenizer.token_to_id(text) for text in tokens.added}
    tokens.check(tokenizer.get_vocab_size(with_added_tokens=True), added, where)
    return TokenizersEncoder(tokenizer, where)


def _read(data: bytes, where: str) -> tokenizers.Tokenizer:
    import tokenizers

    with library_errors(where):
        tokenizer = tokenizers.Tokenizer.from_buffer(data)
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return tokenizer


def _eager_backend(tokenizer: tokenizers.Tokenizer, where: str) -> Backend:
    spelling = spelling_of(tokenizer, where)
    tokens = _tokens(tokenizer, where)
    special = [token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special]
    encoder = TokenizersEncoder(tokenizer, where)
    if spelling.byte_level:
        return Backend(encoder, byte_level_table(tokens, special))
    pieces = sentencepiece_pieces(tokens, spelling.byte_fallback)
    return Backend(encoder, TokenBytes.of(pieces, special), spelling.strips_leading_space)


def _tokens(tokenizer: tokenizers.Tokenizer, where: str) -> list[str]:
    """The text of each id; ids between that are no token have none."""
    ids: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    size = max(ids.values(), default=-1) + 1
    if not 0 < size <= _MAX_TOKENS:
        raise CheckpointError(f"{where}: expected ids below {_MAX_TOKENS}, found {size - 1}")
    tokens = [""] * size
    for token, token_id in ids.items():
        tokens[token_id] = token
    return tokens


def spelling_of(tokenizer: tokenizers.Tokenizer, where: str) -> Spelling:
    """Reads the decoder of a tokenizer. Raises CheckpointError if it is not one of bytes."""
    decoder: dict[str, Any] = {"type": None}
    if tokenizer.decoder is not None:
        decoder = json.loads(tokenizer.decoder.__getstate__())
    steps: list[dict[str, Any]] = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [_step(step) for step in steps]
    if kinds == ["byte_level"]:
        return Spelling(byte_level=True)
    order = ["space", "byte_fallback", "fuse", "strip"]
    if set(kinds) <= set(order) and kinds == sorted(set(kinds), key=order.index) and "space" in kinds:
        return Spelling(byte_fallback="byte_fallback" in kinds, strips_leading_space="strip" in kinds)
    if kinds in (["metaspace"], ["metaspace_strip"]):
        return Spelling(strips_leading_space=kinds == ["metaspace_strip"])
    raise CheckpointError(
        f"{where}: expected a decoder of bytes (ByteLevel, Metaspace, or Replace of {_SPACE} with ByteFallback, Fuse "
        f"and Strip), found {json.dumps(decoder, ensure_ascii=False)[:500]}"
    )


def _step(step: dict[str, Any]) -> str:
    """A name for what one decoder does, or its type."""
    match step:
        case {"type": "ByteLevel"}:
            return "byte_level"
        case {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}:
            return "space"
        case {"type": "ByteFallback"}:
            return "byte_fallback"
        case {"type": "Fuse"}:
            return "fuse"
        case {"type": "Strip", "content": " ", "start": 1, "stop": 0}:
            return "strip"
        case {"type": "Metaspace", "replacement": "▁"}:
            return "metaspace" if step.get("prepend_scheme") == "never" else "metaspace_strip"
    return str(step.get("type"))

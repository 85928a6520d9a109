# SPDX-License-Identifier: Apache-2.0
"""A model's tokenizer, whichever file it came from: text to ids, ids to text, and the byte table of the engine.

The text of tokens is defined by their bytes (token_bytes.py), for `decode` as for the engine's stream, so both agree
on every character. The libraries are imported when a tokenizer is loaded.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paged.loading.checkpoint import Checkpoint
from paged.loading.errors import CheckpointError
from paged.loading.model_folder import file_in
from paged.text.backend import Backend
from paged.text.token_bytes import TokenBytes


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Ids that have a meaning of their own. `ends`: any of them ends an answer."""

    bos: int | None
    eos: int | None
    ends: frozenset[int]


class Tokenizer:
    """Immutable; safe to use from any thread."""

    def __init__(self, backend: Backend, ids: TokenIds) -> None:
        self._backend = backend
        self.bos_token_id = ids.bos
        self.eos_token_id = ids.eos
        self.eos_token_ids = ids.ends

    @property
    def vocab_size(self) -> int:
        """Ids that are tokens; a model's own vocabulary may be padded beyond it."""
        return len(self._backend.token_bytes)

    @functools.cached_property
    def longest_token(self) -> int:
        """Bytes of the longest one."""
        return int(np.diff(self._backend.token_bytes.offsets).max(initial=0))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; special tokens spelled out in it become their ids.

        Args:
            add_special_tokens: put those around it that the model expects (a beginning of sequence, for some). A
                rendered chat template has them already.
        Raises:
            TypeError: not a string. ValueError: a lone surrogate, which no UTF-8 text has.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a string, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            surrogate = f"U+{ord(text[error.start]):04X}"
            raise ValueError(
                f"text must be valid Unicode, got a lone surrogate {surrogate} at {error.start}"
            ) from error
        return self._backend.encoder.encode(text, add_special_tokens)

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`, bytes that are not UTF-8 replaced by U+FFFD.

        Raises:
            ValueError: an id is no token.
        """
        ids = list(token_ids)
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token ids must be 0 to {self.vocab_size - 1}, got {token}")
        data = self._backend.token_bytes.join(ids, skip_special_tokens)
        if self._backend.strips_leading_space:
            data = data.removeprefix(b" ")
        return data.decode(errors="replace")

    def token_bytes(self) -> TokenBytes:
        """The bytes of every token; a special token's are its text."""
        return self._backend.token_bytes

    def token_table(self) -> tuple[bytes, npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """What the engine streams from: all bytes, [vocab_size + 1] offsets, and [vocab_size] which are special."""
        table = self._backend.token_bytes
        return table.blob, table.offsets, table.is_special


def load_tokenizer(path: str | Path, checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer of the model at `path`: in the GGUF file, or tokenizer.json or tokenizer.model in the folder. None
    if the folder has neither: such a model takes and gives token ids.

    Raises CheckpointError if it is broken or of a kind not supported.
    """
    path = Path(path)
    backend = _load_backend(path, checkpoint)
    if backend is None:
        return None
    return Tokenizer(backend, load_token_ids(path, checkpoint, len(backend.token_bytes)))


def _load_backend(path: Path, checkpoint: Checkpoint) -> Backend | None:
    if checkpoint.gguf is not None:
        from paged.text.gguf_backend import load_gguf_tokenizer

        return load_gguf_tokenizer(checkpoint.gguf)
    if file_in(path, "tokenizer.json").exists():
        from paged.text.tokenizers_backend import load_tokenizers

        return load_tokenizers(path)
    if file_in(path, "tokenizer.model").exists():
        from paged.text.sentencepiece_folder import load_sentencepiece

        return load_sentencepiece(path)
    return None


def load_token_ids(path: Path, checkpoint: Checkpoint, vocab_size: int) -> TokenIds:
    """As config.json and generation_config.json name them. Both JSON files may name ends of an answer; all count."""
    sources = (checkpoint.config, checkpoint.generation_config)
    ends = [token for source in sources for token in _ids(path, source, "eos_token_id", vocab_size)]
    bos = [token for source in sources for token in _ids(path, source, "bos_token_id", vocab_size)]
    return TokenIds(bos[0] if bos else None, ends[0] if ends else None, frozenset(ends))


def _ids(path: Path, source: dict[str, Any], key: str, vocab_size: int) -> list[int]:
    value = source.get(key)
    values = [] if value is None else value if isinstance(value, list) else [value]
    for token in values:
        if type(token) is not int or not 0 <= token < vocab_size:
            raise CheckpointError(f"{path}: {key}: expected token ids below {vocab_size}, found {value!r}")
    return values

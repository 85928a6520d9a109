# SPDX-License-Identifier: Apache-2.0
"""Sessions in files: `Session.save` and `LLM.load_session`.

A .safetensors file of the session's token ids, int32 [tokens]; its blocks of the KV cache that were there, uint8
[blocks, bytes], in an order that belongs to the backend and is named in the metadata; and checksums,
uint32 [blocks + 1]: of each block and all tokens up to its end, and of the tenant and all tokens. A block is only used
for exactly its tokens, after exactly those before.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from paged import _C

if TYPE_CHECKING:
    from paged.llm import LLM
    from paged.session import Session

_FORMAT, _VERSION = "paged.session", "1"
_HEADER_BYTES = 4096  # blank behind the JSON, as the format allows: it is written when all else is known
_MAX_HEADER_BYTES = 1 << 20
_ITEMSIZE = {"I32": 4, "U8": 1, "U32": 4}


def save(session: Session, path: str | Path) -> int:
    """As `Session.save`; the bytes of the blocks written. The file appears whole or not at all."""
    llm, engine = session._llm, session._engine
    tokens = np.asarray(session.token_ids, np.int32)
    metadata = _identity(llm) | {"tenant": session._tenant}
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.seek(_HEADER_BYTES)
            sums = _write_blocks(file, engine, session._id, tokens, llm._block_size)
            num_bytes, num_blocks = file.tell() - _HEADER_BYTES, len(sums)
            checksums = np.asarray([*sums, _checksum(tokens, session._tenant.encode())], np.uint32)
            file.write(tokens.tobytes() + checksums.tobytes())
            _write_header(file, metadata, {
                "blocks": ("U8", (num_blocks, num_bytes // max(1, num_blocks))), "token_ids": ("I32", tokens.shape),
                "checksums": ("U32", checksums.shape),
            })  # fmt: skip
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return num_bytes


def _write_blocks(
    file: BinaryIO, engine: _C.Engine, session: int, tokens: npt.NDArray[np.int32], block_size: int
) -> list[int]:
    """One at a time, between two steps each; up to the first that is not there any more."""
    sums: list[int] = []
    while (data := _C.session_read_block(engine, session, len(sums))) is not None:
        file.write(data)
        sums.append(_checksum(tokens[: (len(sums) + 1) * block_size], data))
    return sums


def _checksum(tokens: npt.NDArray[np.int32], data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(tokens.tobytes()))


def _write_header(file: BinaryIO, metadata: dict[str, str], tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * _ITEMSIZE[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    size = _HEADER_BYTES - 8
    if len(text) > size:
        raise ValueError(f"the tenant's name is too long to be saved: {len(metadata['tenant'])} characters")
    file.seek(0)
    file.write(size.to_bytes(8, "little") + text.ljust(size))


def load(llm: LLM, path: str | Path, tenant: str | None, weight: float) -> Session:
    """As `LLM.load_session`."""
    from paged.session import Session

    if not 0 < weight < math.inf:
        raise ValueError(f"weight takes a number above 0, got {weight!r}")
    engine = llm._running_engine()
    with Path(path).open("rb") as file:
        saved = _SavedSession(file, path)
        saved.check(_identity(llm))
        tokens = saved.tokens(llm.max_model_len, engine.guide_desk.vocab_size)
        tenant = saved.metadata.get("tenant", "") if tenant is None else tenant
        session = Session(llm, _C.session_restore(engine, tenant, weight, tokens.tolist()), tenant)
        try:
            saved.give_blocks(engine, session._id, tokens, llm._block_size)
        except BaseException:
            session.close()
            raise
    return session


class _SavedSession:
    """An open file, whose header has been read and agrees with the file's size."""

    def __init__(self, file: BinaryIO, path: str | Path) -> None:
        self._file = file
        self._path = path
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= _MAX_HEADER_BYTES:
            raise self._error("it is no .safetensors file of a session")
        try:
            header = json.loads(file.read(size))
            self.metadata: dict[str, str] = dict(header.pop("__metadata__"))
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._starts: dict[str, int] = {}
            for name, dtype, rank in (("blocks", "U8", 2), ("token_ids", "I32", 1), ("checksums", "U32", 1)):
                self._take(header[name], name, dtype, rank, 8 + size)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._error(f"its header is broken ({type(error).__name__}: {error})") from error
        if self.metadata.get("format") != _FORMAT:
            raise self._error(f"it is no session: its format is {self.metadata.get('format')!r}")
        if self._shapes["checksums"][0] != self._shapes["blocks"][0] + 1:
            raise self._error(f"it has {self._shapes['checksums'][0]} checksums for {self._shapes['blocks'][0]} blocks")

    def _take(self, entry: Mapping[str, Any], name: str, dtype: str, rank: int, data_start: int) -> None:
        shape = tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if entry["dtype"] != dtype or len(shape) != rank or not all(type(n) is int and n >= 0 for n in (*shape, begin)):
            raise ValueError(f"{name} is {entry['dtype']} {shape}")
        file_bytes = os.fstat(self._file.fileno()).st_size
        if end != begin + math.prod(shape) * _ITEMSIZE[dtype] or data_start + end > file_bytes:
            raise ValueError(f"{name} does not lie within the file's {file_bytes} bytes")
        self._shapes[name], self._starts[name] = shape, data_start + begin

    def check(self, expected: dict[str, str]) -> None:
        """Raises ValueError unless the file is of this model, in these numbers and this order."""
        for key, value in expected.items():
            if key in ("layout", "block_bytes") and self._shapes["blocks"][0] == 0:
                continue
            if self.metadata.get(key) != value:
                raise self._error(
                    f"its {key} is {self.metadata.get(key)!r}, this engine's is {value!r}; load it with the model and "
                    "the options that it was saved with"
                )
        if self._shapes["blocks"][0] and self._shapes["blocks"][1] != int(expected["block_bytes"]):
            raise self._error(f"its blocks have {self._shapes['blocks'][1]} bytes, not {expected['block_bytes']}")

    def tokens(self, max_model_len: int, vocab_size: int) -> npt.NDArray[np.int32]:
        tokens = self._read("token_ids", np.int32)
        if tokens.size >= max_model_len:
            raise self._error(f"it has {tokens.size} tokens; max_model_len is {max_model_len}")
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < vocab_size):
            raise self._error(f"it has tokens outside of the vocabulary of {vocab_size}")
        return tokens

    def give_blocks(
        self, engine: _C.Engine, session: int, tokens: npt.NDArray[np.int32], block_size: int
    ) -> None:  # fmt: skip
        """All are verified before the first is used; then one at a time, as long as there is room."""
        *sums, of_tokens = self._read("checksums", np.uint32).tolist()
        if len(sums) * block_size > tokens.size:
            raise self._error(f"it has {len(sums)} blocks of {block_size} tokens for {tokens.size} tokens")
        if _checksum(tokens, self.metadata.get("tenant", "").encode()) != of_tokens:
            raise self._error("its tokens do not match their checksum: the file is damaged")
        for index, of_block in enumerate(sums):
            if _checksum(tokens[: (index + 1) * block_size], self._block(index)) != of_block:
                raise self._error(f"block {index} and its tokens do not match their checksum: the file is damaged")
        for index in range(len(sums)):
            if not _C.session_write_block(engine, session, self._block(index)):
                return

    def _block(self, index: int) -> bytes:
        num_bytes = self._shapes["blocks"][1]
        self._file.seek(self._starts["blocks"] + index * num_bytes)
        return self._file.read(num_bytes)

    def _read(self, name: str, dtype: type[np.generic]) -> npt.NDArray[Any]:
        self._file.seek(self._starts[name])
        data = self._file.read(math.prod(self._shapes[name]) * np.dtype(dtype).itemsize)
        return np.frombuffer(data, dtype)

    def _error(self, message: str) -> ValueError:
        return ValueError(f"{self._path}: {message}")


def _identity(llm: LLM) -> dict[str, str]:
    """What must agree."""
    block_bytes, layout = _C.block_layout(llm._running_engine())
    return {
        "format": _FORMAT,
        "version": _VERSION,
        **llm._cache_identity,
        "block_size": str(llm._block_size),
        "block_bytes": str(block_bytes),
        "layout": layout,
    }

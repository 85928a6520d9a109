# SPDX-License-Identifier: Apache-2.0
"""Quantised weights kept in a file of our own, so that the next load need not round them again.

The file is a mark, the bytes of the tensors one after the other, and behind them, known only when they are written, a
JSON index and its length. It names the weights it was made of. It is written beside its place and renamed into it, so
a process that dies leaves what was there; and each tensor has a checksum, which is looked at when it is taken.
"""

import json
import os
import tempfile
import zlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from paged.loading.errors import CheckpointError
from paged.loading.mapped_file import Bytes, MappedFile
from paged.loading.model_folder import parse_json
from paged.loading.raw_tensor import RawTensor

_MARK = b"paged q1"
_LENGTH_BYTES = 8
_MAX_INDEX_BYTES = 100_000_000


class QuantisedFile:
    """Owns the mapped file."""

    def __init__(self, path: Path, source: str) -> None:
        """Raises CheckpointError unless the file is whole and was made of `source`."""
        self._file = MappedFile(path)
        try:
            self._index = self._read_index(source)
        except BaseException:
            self._file.close()
            raise

    def tensor(self, name: str, type: str, shape: tuple[int, ...]) -> RawTensor | None:
        """None where the file has no such tensor or its bytes are not those that were written."""
        entry = self._index.get(name)
        if entry is None:
            return None
        kind, offset, num_bytes, checksum = entry
        data = self._file.view(offset, num_bytes)
        if kind != type or zlib.crc32(data.data) != checksum:
            return None
        return RawTensor(data, type, shape, unload=partial(self._file.unload, offset, num_bytes))

    def close(self) -> None:
        self._file.close()

    def _read_index(self, source: str) -> dict[str, tuple[str, int, int, int]]:
        file, end = self._file, self._file.size - _LENGTH_BYTES
        length = int.from_bytes(file.buffer[end:], "little") if end >= len(_MARK) else -1
        if file.buffer[: len(_MARK)] != _MARK or not 0 < length <= min(end - len(_MARK), _MAX_INDEX_BYTES):
            raise CheckpointError(f"{file.path}: not a whole file of quantised weights")
        content = parse_json(file.buffer[end - length : end], f"{file.path}: index")
        if content.get("source") != source:
            raise CheckpointError(f"{file.path}: made of other weights than {source}")
        tensors = content.get("tensors")
        if not isinstance(tensors, dict) or not all(_is_entry(entry, end - length) for entry in tensors.values()):
            raise CheckpointError(f"{file.path}: index: expected [type, offset, bytes, checksum] for each tensor")
        return {name: tuple(entry) for name, entry in tensors.items()}


def write_quantised_file(path: Path, source: str, tensors: Iterable[tuple[str, str, Bytes]]) -> None:
    """(name, type, bytes) of each tensor. Raises OSError where the folder cannot be written."""
    index: dict[str, list[Any]] = {}
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_MARK)
            for name, type, data in tensors:
                index[name] = [type, file.tell(), data.size, zlib.crc32(data.data)]
                file.write(data.data)
            content = json.dumps({"source": source, "tensors": index}).encode()
            file.write(content + len(content).to_bytes(_LENGTH_BYTES, "little"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _is_entry(entry: object, end: int) -> bool:
    if not isinstance(entry, list) or len(entry) != 4 or not isinstance(entry[0], str):
        return False
    if not all(type(number) is int and number >= 0 for number in entry[1:]):
        return False
    return bool(len(_MARK) <= entry[1] and entry[1] + entry[2] <= end)

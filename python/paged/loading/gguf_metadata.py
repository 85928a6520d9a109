# SPDX-License-Identifier: Apache-2.0
"""Reads the head of a GGUF file: a cursor over untrusted bytes, and metadata values.

Arrays are only walked over while parsing and decoded when asked for: a vocabulary has up to 262144 strings. Every
length is checked before it is believed.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paged import _C
from paged.loading.errors import CheckpointError
from paged.loading.mapped_file import MappedFile

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4"}
_SCALARS |= {7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_MAX_NAME_BYTES = 65535


@dataclass(frozen=True, eq=False, slots=True)
class GgufArray:
    """A metadata array not yet decoded: bytes `start` to `end` of `buffer`."""

    path: Path
    buffer: mmap.mmap | bytes
    type: int
    count: int
    start: int
    end: int

    def strings(self) -> list[str]:
        """Raises CheckpointError if these are not strings or not UTF-8."""
        return self._decode(0, self.count)

    def string(self, index: int) -> str:
        """One of them, 0 <= index < count."""
        return self._decode(index, 1)[0]

    def _decode(self, first: int, count: int) -> list[str]:
        if self.type != _STRING:
            raise CheckpointError(f"{self.path}: expected an array of strings, found type {self.type}")
        try:
            return _C.read_strings(data=self.buffer, position=self.start, first=first, count=count)
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: a string in a metadata array is not UTF-8: {error}") from error

    def numbers(self) -> npt.NDArray[Any]:
        """[count], a copy. Raises CheckpointError if these are strings."""
        if self.type == _STRING:
            raise CheckpointError(f"{self.path}: expected an array of numbers, found strings")
        return np.frombuffer(self.buffer, _SCALARS[self.type], self.count, self.start).copy()

    def detached(self) -> "GgufArray":
        """A copy that can be read when the file is closed."""
        data = bytes(self.buffer[self.start : self.end])
        return GgufArray(self.path, data, self.type, self.count, 0, len(data))


Value = int | float | bool | str | GgufArray


class Cursor:
    """A position in the head of `file`; each method reads there and moves on, or raises CheckpointError."""

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self.position = 0

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self._file.path}: byte {self.position}: {message}")

    def u32(self) -> int:
        return int(_U32.unpack_from(self._file.buffer, self._take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack_from(self._file.buffer, self._take(8))[0])

    def count(self, least_bytes: int, what: str) -> int:
        """A 64-bit number of things of at least `least_bytes` each: bounded by what is left of the file."""
        count, left = self.u64(), self._file.size - self.position
        if count * least_bytes > left:
            raise self.error(f"{count} {what} need at least {count * least_bytes} bytes, {left} are left in the file")
        return count

    def name(self) -> str:
        length = self.u64()
        if length > _MAX_NAME_BYTES:
            raise self.error(f"expected a name of at most {_MAX_NAME_BYTES} bytes, found length {length}")
        return self._text(length)

    def value(self) -> Value:
        """A metadata value: its type, then itself."""
        type = self.u32()
        if type == _STRING:
            return self._text(self.u64())
        if type == _ARRAY:
            return self._array()
        if type not in _SCALARS:
            raise self.error(f"unknown metadata type {type}")
        dtype = np.dtype(_SCALARS[type])
        value: int | float | bool = np.frombuffer(self._file.buffer, dtype, 1, self._take(dtype.itemsize))[0].item()
        return value

    def _take(self, num_bytes: int) -> int:
        start = self.position
        if num_bytes > self._file.size - start:
            raise self.error(f"expected {num_bytes} more bytes, {self._file.size - start} are left in the file")
        self.position = start + num_bytes
        return start

    def _text(self, length: int) -> str:
        start = self._take(length)
        try:
            return self._file.buffer[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise self.error(f"a string of {length} bytes is not UTF-8: {error}") from error

    def _array(self) -> GgufArray:
        type = self.u32()
        if type != _STRING and type not in _SCALARS:
            raise self.error(f"expected an array of numbers or strings, found element type {type}")
        size = 8 if type == _STRING else np.dtype(_SCALARS[type]).itemsize
        count = self.count(size, "strings" if type == _STRING else "array elements")
        start = self.position
        if type == _STRING:
            self._skip_strings(count)
        else:
            self._take(count * size)
        return GgufArray(self._file.path, self._file.buffer, type, count, start, self.position)

    def _skip_strings(self, count: int) -> None:
        try:
            self.position = _C.skip_strings(data=self._file.buffer, position=self.position, count=count)
        except ValueError as error:
            raise self.error(f"an array of {count} strings: {error}") from error

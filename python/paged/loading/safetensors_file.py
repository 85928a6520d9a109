# SPDX-License-Identifier: Apache-2.0
"""One memory-mapped .safetensors file (format: huggingface/safetensors, README).

Invariants after opening: every tensor's bytes lie inside the file, agree with its dtype and shape, and overlap no other
tensor's; together they fill the file. Cost: one pass over the JSON header; no tensor byte is read.
"""

from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from paged.loading.errors import CheckpointError
from paged.loading.mapped_file import MappedFile
from paged.loading.model_folder import parse_json
from paged.loading.raw_tensor import RawTensor

_MAX_HEADER_BYTES = 100_000_000  # the format's own bound
_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BITS = {"F32": 32, "F16": 16, "BF16": 16, "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32}
_BITS |= {"U64": 64, "I64": 64, "F64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8}
_BITS |= {"F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}


@dataclass(frozen=True, slots=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    offset: int  # from the start of the file
    num_bytes: int


class SafetensorsFile:
    def __init__(self, path: Path) -> None:
        """Raises CheckpointError unless the file is whole and consistent."""
        self._file = MappedFile(path)
        try:
            self._entries = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def names(self) -> list[str]:
        return list(self._entries)

    def tensor(self, name: str) -> RawTensor:
        """Raises CheckpointError if there is no such tensor or it is not floating point."""
        entry = self._entries.get(name)
        if entry is None:
            raise CheckpointError(f"{self._file.path}: has no tensor '{name}'")
        if entry.dtype not in _TYPES:
            raise self._error(f"tensor '{name}': expected dtype {', '.join(_TYPES)}, found {entry.dtype}")
        return RawTensor(
            self._file.view(entry.offset, entry.num_bytes), _TYPES[entry.dtype], entry.shape,
            unload=partial(self._file.unload, entry.offset, entry.num_bytes),
        )  # fmt: skip

    def close(self) -> None:
        self._file.close()

    def _error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self._file.path}: {message}")

    def _read_header(self) -> dict[str, _Entry]:
        file = self._file
        length = int.from_bytes(file.buffer[:8], "little")
        if file.size < 8 or length > min(file.size - 8, _MAX_HEADER_BYTES):
            limit = max(0, min(file.size - 8, _MAX_HEADER_BYTES))
            raise self._error(f"not a whole safetensors file: header of {length} bytes, at most {limit} possible")
        header = file.buffer[8 : 8 + length]
        if not header.startswith(b"{"):
            raise self._error(f"expected a header that starts with '{{', found {header[:1]!r}")
        content = parse_json(header, f"{file.path}: header")
        notes = content.pop("__metadata__", {})
        if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
            raise self._error("__metadata__: expected a JSON object of strings")
        entries = {name: self._entry(name, value, 8 + length) for name, value in content.items()}
        self._check_layout(entries, 8 + length)
        return entries

    def _entry(self, name: str, value: Any, data_start: int) -> _Entry:
        if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
            raise self._error(f"tensor '{name}': expected an object of dtype, shape and data_offsets")
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _BITS:
            raise self._error(f"tensor '{name}': unknown dtype {dtype!r}")
        if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
            raise self._error(f"tensor '{name}': expected a list of sizes as shape and two data_offsets")
        begin, end = offsets
        bits = prod(shape) * _BITS[dtype]
        if bits != 8 * (end - begin):
            raise self._error(f"tensor '{name}': {dtype} {shape} needs {bits / 8:g} bytes, found {end - begin}")
        return _Entry(dtype, tuple(shape), data_start + begin, end - begin)

    def _check_layout(self, entries: dict[str, _Entry], data_start: int) -> None:
        position = data_start
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
            if entry.offset != position:
                raise self._error(
                    f"tensor '{name}': expected to start at byte {position}, where the one before it ends, "
                    f"found {entry.offset}"
                )
            position += entry.num_bytes
        if position != self._file.size:
            raise self._error(f"its tensors end at byte {position}, the file at byte {self._file.size}")


def _are_sizes(value: Any) -> bool:
    """A list of at most eight non-negative integers below 2**63 (and not booleans)."""
    return isinstance(value, list) and len(value) <= 8 and all(type(n) is int and 0 <= n < 1 << 63 for n in value)

# SPDX-License-Identifier: Apache-2.0
"""A memory-mapped GGUF file, versions 2 and 3, little endian (format: ggml, docs/gguf.md).

Invariants after opening: keys and tensor names are unique, every tensor is of a type the engine knows, its bytes lie
inside the file and overlap no other's. Cost: one walk over the head of the file; no tensor byte is read.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path

from paged.loading.dequantize import num_bytes_of
from paged.loading.gguf_metadata import Cursor, Value
from paged.loading.mapped_file import Bytes, MappedFile

_TYPES = {0: "float32", 1: "float16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0"}
_TYPES |= {12: "q4_k", 13: "q5_k", 14: "q6_k", 30: "bfloat16"}
_UNSUPPORTED = {10: "q2_k", 11: "q3_k", 15: "q8_k", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s"}
_UNSUPPORTED |= {20: "iq4_nl", 21: "iq3_s", 22: "iq2_s", 23: "iq4_xs", 29: "iq1_m", 39: "mxfp4"}
_LEAST_PAIR = 8 + 4 + 1  # bytes of a metadata pair: length of its key, type, value
_LEAST_TENSOR = 8 + 4 + 8 + 4 + 8  # length of its name, number of dimensions, one dimension, type, offset
_MAX_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class GgufTensor:
    type: str  # a key of dequantize.BLOCKS
    shape: tuple[int, ...]  # rows first, as everywhere but in the file itself
    offset: int  # from the start of the file
    num_bytes: int


class GgufFile:
    """`metadata`: key -> value, arrays undecoded. `tensors`: GGUF name -> where and what."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError unless the file is whole and consistent."""
        self.path = path
        self._file = MappedFile(path)
        self.metadata: dict[str, Value] = {}
        self.tensors: dict[str, GgufTensor] = {}
        try:
            self._read_head(Cursor(self._file))
        except BaseException:
            self._file.close()
            raise

    def view(self, tensor: GgufTensor) -> Bytes:
        """uint8 [num_bytes] of the file, no copy."""
        return self._file.view(tensor.offset, tensor.num_bytes)

    def unload(self, tensor: GgufTensor) -> None:
        """Lets the memory of its bytes go; whoever reads them again gets them from the file."""
        self._file.unload(tensor.offset, tensor.num_bytes)

    def close(self) -> None:
        self._file.close()

    def _read_head(self, cursor: Cursor) -> None:
        if self._file.buffer[:4] != b"GGUF":
            raise cursor.error(f"not a GGUF file: it starts with {self._file.buffer[:4]!r}")
        cursor.position = 4
        version = cursor.u32()
        if version not in (2, 3):
            big_endian = version in (2 << 24, 3 << 24)
            raise cursor.error("big-endian GGUF" if big_endian else f"expected GGUF version 2 or 3, found {version}")
        num_tensors = cursor.count(_LEAST_TENSOR, "tensors")
        for _ in range(cursor.count(_LEAST_PAIR, "metadata pairs")):
            key = cursor.name()
            if key in self.metadata:
                raise cursor.error(f"metadata key '{key}' appears twice")
            self.metadata[key] = cursor.value()
        self._check_split(cursor)
        for _ in range(num_tensors):
            self._read_tensor(cursor)
        self._place_tensors(cursor)

    def _check_split(self, cursor: Cursor) -> None:
        parts = self.metadata.get("split.count", 1)
        if parts not in (0, 1):
            raise cursor.error(f"one of {parts} parts of a model; join them first with llama-gguf-split --merge")

    def _read_tensor(self, cursor: Cursor) -> None:
        name = cursor.name()
        if name in self.tensors:
            raise cursor.error(f"tensor '{name}' appears twice")
        num_dimensions = cursor.u32()
        if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
            raise cursor.error(f"tensor '{name}': expected 1 to {_MAX_DIMENSIONS} dimensions, found {num_dimensions}")
        shape = tuple(reversed([cursor.u64() for _ in range(num_dimensions)]))
        type_id = cursor.u32()
        if type_id not in _TYPES:
            found = _UNSUPPORTED.get(type_id, "unknown")
            known = ", ".join(_TYPES.values())
            raise cursor.error(f"tensor '{name}': expected a type among {known}, found {type_id} ({found})")
        num_bytes = num_bytes_of(_TYPES[type_id], shape)
        if num_bytes is None or prod(shape) == 0:
            raise cursor.error(f"tensor '{name}': impossible shape {shape} for type {_TYPES[type_id]}")
        self.tensors[name] = GgufTensor(_TYPES[type_id], shape, cursor.u64(), num_bytes)

    def _place_tensors(self, cursor: Cursor) -> None:
        """Offsets in the file count from the aligned end of the head: turns them absolute and checks them."""
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise cursor.error(f"general.alignment: expected a power of two up to 2**20, found {alignment!r}")
        end = cursor.position + -cursor.position % alignment
        data_start = end
        for name, tensor in sorted(self.tensors.items(), key=lambda item: item[1].offset):
            start = data_start + tensor.offset
            if tensor.offset % alignment or start < end or start + tensor.num_bytes > self._file.size:
                raise cursor.error(
                    f"tensor '{name}': bytes {start} to {start + tensor.num_bytes} must be aligned to {alignment}, "
                    f"follow byte {end} and lie within the file's {self._file.size}"
                )
            end = start + tensor.num_bytes
            self.tensors[name] = GgufTensor(tensor.type, tensor.shape, start, tensor.num_bytes)

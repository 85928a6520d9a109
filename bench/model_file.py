# SPDX-License-Identifier: Apache-2.0
"""How many bytes of weights one decode step reads, from the header of a model's files. Standard library only."""

from __future__ import annotations

import json
import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

# ggml's type numbers: of metadata values (fixed size in bytes), and of tensors.
_GGUF_VALUE_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_GGUF_STRING, _GGUF_ARRAY = 8, 9
_GGUF_TENSOR_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    30: "BF16",
}


@dataclass(frozen=True)
class Weights:
    """`step_bytes`: what a decode step reads: all weights, less an input embedding that is not also the output."""

    step_bytes: int
    precision: str


def weights_of(path: Path) -> Weights:
    """Reads the header of a `.gguf` file, or of the safetensors files in a folder."""
    if path.is_dir():
        return _safetensors_weights(path)
    if path.suffix == ".gguf":
        return _gguf_weights(path)
    raise ValueError(f"{path} is neither a folder of safetensors nor a .gguf file")


def _safetensors_weights(folder: Path) -> Weights:
    sizes: dict[str, int] = {}
    dtypes: Counter[str] = Counter()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                sizes[name] = end - begin
                dtypes[tensor["dtype"]] += end - begin
    if not sizes:
        raise ValueError(f"no .safetensors file in {folder}")
    step_bytes = _without_input_embedding(sizes, "lm_head.weight", "embed_tokens.weight")
    return Weights(step_bytes, dtypes.most_common(1)[0][0])


def _gguf_weights(path: Path) -> Weights:
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        magic, _, num_tensors, num_values = struct.unpack_from("<4sIQQ", data, 0)
        if magic != b"GGUF":
            raise ValueError(f"{path} does not start as a GGUF file: {magic!r}")
        at = 24
        for _ in range(num_values):
            at = _skip_string(data, at)
            (kind,) = struct.unpack_from("<I", data, at)
            at = _skip_value(data, at + 4, kind)
        infos = []
        for _ in range(num_tensors):
            (length,) = struct.unpack_from("<Q", data, at)
            name = data[at + 8 : at + 8 + length].decode()
            (rank,) = struct.unpack_from("<I", data, at + 8 + length)
            at += 12 + length + 8 * rank
            kind, offset = struct.unpack_from("<IQ", data, at)
            at += 12
            infos.append((offset, name, kind))
        infos.sort()
        ends = [offset for offset, _, _ in infos[1:]] + [len(data) - at]
    sizes = {name: end - offset for (offset, name, _), end in zip(infos, ends, strict=True)}
    kinds: Counter[int] = Counter()
    for _, name, kind in infos:
        kinds[kind] += sizes[name] if name.startswith("blk.") else 0
    kind = kinds.most_common(1)[0][0]
    step_bytes = _without_input_embedding(sizes, "output.weight", "token_embd.weight")
    return Weights(step_bytes, _GGUF_TENSOR_TYPES.get(kind, f"type {kind}"))


def _skip_string(data: mmap.mmap, at: int) -> int:
    (length,) = struct.unpack_from("<Q", data, at)
    return at + 8 + int(length)


def _skip_value(data: mmap.mmap, at: int, kind: int) -> int:
    if kind == _GGUF_STRING:
        return _skip_string(data, at)
    if kind != _GGUF_ARRAY:
        return at + _GGUF_VALUE_SIZES[kind]
    element, length = struct.unpack_from("<IQ", data, at)
    at += 12
    if element in _GGUF_VALUE_SIZES:
        return at + _GGUF_VALUE_SIZES[element] * int(length)
    for _ in range(length):
        at = _skip_value(data, at, element)
    return at


def _without_input_embedding(sizes: dict[str, int], output: str, embedding: str) -> int:
    total = sum(sizes.values())
    if output in sizes:
        total -= sum(size for name, size in sizes.items() if name.endswith(embedding))
    return total

# SPDX-License-Identifier: Apache-2.0
"""Stored weights -> float32, in numpy: the readable definition of every storage type the engine knows.

The block layouts are ggml's (llama.cpp, ggml-quants.c). Each function takes blocks as uint8 [n, bytes of a block] and
returns float32 [n, elements of a block]; the order of float operations is that of `gguf.quants`, so results are
bitwise equal to it. Cost: about one core's numpy speed; kernels read the quantised bytes themselves.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# type -> (elements, bytes) of one block
BLOCKS = {
    "float32": (1, 4),
    "float16": (1, 2),
    "bfloat16": (1, 2),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "q5_0": (32, 22),
    "q5_1": (32, 24),
    "q8_0": (32, 34),
    "q4_k": (256, 144),
    "q5_k": (256, 176),
    "q6_k": (256, 210),
}
_CHUNK_ELEMENTS = 1 << 18  # bounds the temporaries, and keeps them in cache


def num_bytes_of(type: str, shape: tuple[int, ...]) -> int | None:
    """Bytes of a tensor, or None if its rows are not whole blocks."""
    elements, size = BLOCKS[type]
    if shape and shape[-1] % elements:
        return None
    count = 1
    for length in shape:
        count *= length
    return count // elements * size


def dequantize(data: Bytes, type: str, shape: tuple[int, ...]) -> Floats:
    """uint8 [num_bytes] -> float32 [shape]. `data` must hold exactly that tensor."""
    if type not in BLOCKS:
        raise ValueError(f"weight type must be one of {', '.join(BLOCKS)}, got '{type}'")
    expected = num_bytes_of(type, shape)
    if data.size != expected:
        raise ValueError(f"a {type} tensor of shape {shape} has {expected} bytes, got {data.size}")
    elements, size = BLOCKS[type]
    blocks = data.reshape(-1, size)
    out = np.empty((len(blocks), elements), np.float32)
    step = _CHUNK_ELEMENTS // elements
    with np.errstate(invalid="ignore", over="ignore"):  # inf and NaN scales are the file's business
        for start in range(0, len(blocks), step):
            out[start : start + step] = _READERS[type](blocks[start : start + step])
    return out.reshape(shape)


def _half(columns: Bytes) -> Floats:
    """The float16 scales of n blocks, uint8 [n, 2] -> float32 [n, 1]."""
    return np.ascontiguousarray(columns).view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes, group: int) -> Bytes:
    """[n, bytes] -> [n, 2 * bytes]: the low nibbles of each `group` bytes, then their high ones."""
    split = np.stack([packed & 0x0F, packed >> 4], axis=1).reshape(len(packed), 2, -1, group)
    return split.swapaxes(1, 2).reshape(len(packed), -1)


def _bits(packed: Bytes, group: int, width: int) -> Bytes:
    """[n, bytes] -> [n, 8 / width * bytes]: fields of `width` bits, lowest first over each `group` bytes."""
    shifts = np.arange(0, 8, width, dtype=np.uint8).reshape(1, 1, -1, 1)
    fields = packed.reshape(len(packed), -1, 1, group) >> shifts & np.uint8((1 << width) - 1)
    return fields.reshape(len(packed), -1)


def _float32(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view(np.float32)


def _bfloat16(blocks: Bytes) -> Floats:
    return (np.ascontiguousarray(blocks).view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks[:, :2]) * (_nibbles(blocks[:, 2:], 16).astype(np.int8) - np.int8(8)).astype(np.float32)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks[:, :2]) * _nibbles(blocks[:, 4:], 16).astype(np.float32) + _half(blocks[:, 2:4])


def _five_bits(high: Bytes, low: Bytes) -> Bytes:
    """The 32 values of a Q5_0 / Q5_1 block: fifth bits as one little-endian word [n, 4], nibbles [n, 16]."""
    fifth = np.unpackbits(np.ascontiguousarray(high), axis=1, bitorder="little")
    return _nibbles(low, 16) | fifth << np.uint8(4)


def _q5_0(blocks: Bytes) -> Floats:
    values = _five_bits(blocks[:, 2:6], blocks[:, 6:]).astype(np.int8) - np.int8(16)
    return _half(blocks[:, :2]) * values.astype(np.float32)


def _q5_1(blocks: Bytes) -> Floats:
    values = _five_bits(blocks[:, 4:8], blocks[:, 8:]).astype(np.float32)
    return _half(blocks[:, :2]) * values + _half(blocks[:, 2:4])


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks[:, :2]) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _scales_and_mins(blocks: Bytes) -> tuple[Floats, Floats]:
    """Of Q4_K and Q5_K: 8 six-bit scales and 8 six-bit minima in 12 bytes, each times its float16; [n, 8, 1] both."""
    low_scales, low_mins, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low_scales & 0x3F, (high & 0x0F) | ((low_scales >> 2) & 0x30)], axis=1)
    mins = np.concatenate([low_mins & 0x3F, (high >> 4) | ((low_mins >> 2) & 0x30)], axis=1)
    scale = _half(blocks[:, :2]) * scales.astype(np.float32)
    offset = _half(blocks[:, 2:4]) * mins.astype(np.float32)
    return scale[:, :, None], offset[:, :, None]


def _q4_k(blocks: Bytes) -> Floats:
    scale, offset = _scales_and_mins(blocks)
    values = _nibbles(blocks[:, 16:], 32).reshape(-1, 8, 32).astype(np.float32)
    return (scale * values - offset).reshape(-1, 256)


def _q5_k(blocks: Bytes) -> Floats:
    scale, offset = _scales_and_mins(blocks)
    values = _nibbles(blocks[:, 48:], 32) | _bits(blocks[:, 16:48], 32, 1) << np.uint8(4)
    return (scale * values.reshape(-1, 8, 32).astype(np.float32) - offset).reshape(-1, 256)


def _q6_k(blocks: Bytes) -> Floats:
    scale = _half(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    values = _nibbles(blocks[:, :128], 64) | _bits(blocks[:, 128:192], 32, 2) << np.uint8(4)
    signed = (values.astype(np.int8) - np.int8(32)).reshape(-1, 16, 16).astype(np.float32)
    return (scale[:, :, None] * signed).reshape(-1, 256)


_READERS: dict[str, Callable[[Bytes], Floats]] = {
    "float32": _float32,
    "float16": _half,
    "bfloat16": _bfloat16,
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q5_1": _q5_1,
    "q8_0": _q8_0,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
}

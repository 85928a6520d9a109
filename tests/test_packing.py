# SPDX-License-Identifier: Apache-2.0
"""Packing many matrices in one call: what is in memory stays there, what a file holds leaves memory, and neither how
many there are nor how many threads changes a weight."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from paged import _C

ROWS, COLS = 4096, 512
PROGRAM = {
    "num_layers": 1, "num_kv_heads": 1, "head_dim": 8, "dtype": "float32", "arena_bytes": 8192, "max_tokens": 16,
    "max_logits_rows": 4, "vocab_size": 64, "max_positions": 8,
}  # fmt: skip


def _pack(data: np.ndarray, threads: int = 2) -> _C.Program:
    program = _C.Program(**PROGRAM)  # type: ignore[arg-type]
    first = program.add_matrices(
        sources=[(data, "float32", ROWS, COLS, None), (data, "bfloat16", ROWS, 2 * COLS, None)],
        threads=_C.ThreadPool(threads),
    )
    assert first == 0
    assert program.matrix_bytes == [data.size, data.size]
    return program


def _bytes() -> bytes:
    return np.random.default_rng(0).integers(0, 255, 4 * ROWS * COLS, np.uint8).tobytes()


@pytest.mark.parametrize("writable", [False, True])
def test_what_is_packed_from_memory_is_still_there(writable: bool) -> None:
    content = _bytes()
    data = np.frombuffer(bytearray(content) if writable else bytes(bytearray(content)), np.uint8)
    _pack(data)
    assert data.tobytes() == content


@pytest.mark.parametrize("access", [mmap.ACCESS_READ, mmap.ACCESS_COPY])
def test_what_a_file_holds_can_be_read_again(tmp_path: Path, access: int) -> None:
    content = _bytes()
    (tmp_path / "weights").write_bytes(content)
    with (tmp_path / "weights").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=access)
    if access == mmap.ACCESS_COPY:
        mapped[:8] = b"own page"  # which only this process has
        content = b"own page" + content[8:]
    data = np.frombuffer(mapped, np.uint8)
    _pack(data)
    assert data.tobytes() == content


def _resident(address: int) -> int:
    """Kilobytes in memory of the mapping at `address`."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{address:x}-"))
    return int(next(line for line in lines[start:] if line.startswith("Rss:")).split()[1])


def test_what_a_file_holds_leaves_memory(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(_bytes())
    with (tmp_path / "weights").open("rb") as file:
        data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    assert data.sum() > 0
    assert _resident(data.ctypes.data) == data.size // 1024
    _pack(data)
    assert _resident(data.ctypes.data) == 0

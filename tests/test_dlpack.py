# SPDX-License-Identifier: Apache-2.0
"""Tensors enter through DLPack: torch by its C exchange API, others by __dlpack__; what cannot be used is refused."""

from __future__ import annotations

import gc
import sys
from typing import Any

import numpy as np
import pytest
import torch

from paged import _C

ops = _C.ops


class Protocol:
    """A tensor that only speaks __dlpack__, with or without versions."""

    def __init__(self, tensor: torch.Tensor, versioned: bool) -> None:
        self.tensor, self.versioned, self.calls = tensor, versioned, 0

    def __dlpack__(self, **keywords: Any) -> object:
        if not self.versioned and keywords:
            raise TypeError("unexpected keyword")
        self.calls += 1
        return self.tensor.__dlpack__(**keywords)


@pytest.fixture(scope="module")
def threads() -> _C.ThreadPool:
    return _C.ThreadPool(1)


def test_torch_uses_no_python_call(threads: _C.ThreadPool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this torch has no C exchange API (it came with 2.10)")
    monkeypatch.setattr(torch.Tensor, "__dlpack__", None)
    out = torch.zeros(2, 3)
    ops.add(threads, torch.ones(2, 3), torch.ones(2, 3), out)
    assert out.eq(2).all()


@pytest.mark.parametrize("versioned", [False, True])
def test_protocol(threads: _C.ThreadPool, versioned: bool) -> None:
    out = torch.zeros(2, 3)
    a = Protocol(torch.ones(2, 3), versioned)
    before = sys.getrefcount(a.tensor)
    ops.add(threads, a, a, Protocol(out, versioned))
    gc.collect()
    after = sys.getrefcount(a.tensor)
    assert out.eq(2).all() and a.calls == 2 and after == before


def test_numpy_and_views(threads: _C.ThreadPool) -> None:
    base, out = np.arange(24, dtype=np.float32).reshape(4, 6), np.zeros((2, 3), np.float32)
    ops.add(threads, base[1:3, 2:5], base[::3, :3], out)
    assert (out == base[1:3, 2:5] + base[::3, :3]).all()
    ops.add(threads, torch.from_numpy(base)[:1, :0], torch.zeros(1, 0), torch.zeros(1, 0))


def test_read_only_tensors_are_only_read(threads: _C.ThreadPool) -> None:
    frozen, out = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    frozen.flags.writeable = False
    ops.add(threads, frozen, frozen, out)
    assert (out == 2).all()
    with pytest.raises(ValueError, match="out is written to but read-only; pass a writable copy"):
        ops.add(threads, out, out, frozen)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(3, 2).T, r"a must have neighbouring columns, got a column stride of 2; pass \.contiguous\(\)"),
        (torch.ones(2, 3, dtype=torch.float64), "a must be float32, bfloat16 or float16, got float64"),
        (torch.ones(2, 3, dtype=torch.int32), "a must be float32, bfloat16 or float16, got int32"),
        (torch.ones(1, 2, 3), "a must have one or two dimensions, got 3"),
        ([1.0, 2.0], r"a must be a tensor \(torch, numpy or any with __dlpack__\), got <class 'list'>"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused(threads: _C.ThreadPool, x: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.add(threads, x, torch.ones(2, 3), torch.ones(2, 3))


def test_other_devices_are_refused(threads: _C.ThreadPool) -> None:
    class OnGpu:
        def __dlpack__(self, **keywords: Any) -> object:
            raise BufferError("not on the CPU")

    with pytest.raises(BufferError, match="not on the CPU"):
        ops.add(threads, OnGpu(), torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises((ValueError, BufferError, RuntimeError, NotImplementedError)):
        ops.add(threads, torch.ones(2, 3, device="meta"), torch.ones(2, 3), torch.ones(2, 3))


def test_indices_have_their_own_type(threads: _C.ThreadPool) -> None:
    with pytest.raises(ValueError, match="rows must be int32, got int64"):
        ops.gather_rows(threads, torch.ones(2, 3), torch.tensor([0, 1]), torch.ones(2, 3))
    with pytest.raises(ValueError, match="rows must be contiguous"):
        ops.gather_rows(threads, torch.ones(2, 3), torch.zeros(4, dtype=torch.int32)[::2], torch.ones(2, 3))

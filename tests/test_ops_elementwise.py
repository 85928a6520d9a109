# SPDX-License-Identifier: Apache-2.0
"""Norms, rotary embedding, activations and row copies against float64; fused ops equal their parts bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from paged import _C

ops = _C.ops

# Half a unit in the last place of the output's dtype, and some float32 rounding on the way.
EPSILON = {torch.float32: 1e-6, torch.bfloat16: 2**-8 + 1e-6, torch.float16: 2**-11 + 1e-6}
SIZES = [(1, 1), (3, 15), (2, 16), (5, 63), (4, 576), (70, 1000)]


@pytest.fixture(scope="module")
def threads() -> _C.ThreadPool:
    return _C.ThreadPool(3)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(out: torch.Tensor, reference: torch.Tensor, floor: float = 0.0) -> None:
    error = (out.double() - reference).abs()
    subnormal = 2**-25 if out.dtype == torch.float16 else 0.0
    assert (error <= EPSILON[out.dtype] * (reference.abs() + floor) + subnormal).all(), error.max()


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize(("rows", "cols"), SIZES)
def test_rms_norm(threads: _C.ThreadPool, dtype: torch.dtype, rows: int, cols: int) -> None:
    x, weight, out = random(rows, cols, dtype=dtype), random(cols, seed=1), torch.zeros(rows, cols, dtype=dtype)
    ops.rms_norm(threads, x, weight, 1e-5, out)
    close(out, norm(x.double(), weight.double(), 1e-5))


def test_rms_norm_of_heads_in_place(threads: _C.ThreadPool) -> None:
    wide, weight = random(7, 5 * 24 + 8), random(24, seed=1)
    x = wide[:, :120]
    reference = norm(x.double().view(7, 5, 24), weight.double(), 1e-6).view(7, 120)
    ops.rms_norm(threads, x, weight, 1e-6, x)
    close(x, reference)
    assert torch.equal(wide[:, 120:], random(7, 128)[:, 120:])


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize(("rows", "cols"), SIZES)
def test_add_rms_norm_is_add_then_norm(threads: _C.ThreadPool, dtype: torch.dtype, rows: int, cols: int) -> None:
    residual, delta = random(rows, cols, dtype=dtype), random(rows, cols, dtype=dtype, seed=1)
    weight, total, expected = random(cols, seed=2), torch.zeros_like(residual), torch.zeros_like(residual)
    ops.add(threads, residual, delta, total)
    assert torch.equal(total, residual + delta)
    ops.rms_norm(threads, total, weight, 1e-5, expected)
    out = torch.zeros_like(residual)
    ops.add_rms_norm(threads, residual, delta, weight, 1e-5, residual, out)
    assert torch.equal(residual, total) and torch.equal(out, expected)


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("name", ["silu", "gelu_tanh", "gelu_erf"])
def test_gated_activation(threads: _C.ThreadPool, dtype: torch.dtype, name: str) -> None:
    activations: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "silu": functional.silu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "gelu_erf": functional.gelu,
    }
    gate = torch.cat([random(40, 53) * scale for scale in (0.01, 1.0, 30.0, 100.0)]).to(dtype)
    up = random(160, 53, dtype=dtype, seed=1)
    reference = activations[name](gate.double()) * up.double()
    ops.gated_activation(threads, gate, up, name, gate)
    # Where 1 + tanh cancels, the error is absolute: of the order of one rounding of the argument.
    assert ((gate.double() - reference).abs() <= EPSILON[dtype] * reference.abs() + 2e-6 * up.abs() + 2**-25).all()


@pytest.mark.parametrize("dtype", EPSILON)
def test_softcap(threads: _C.ThreadPool, dtype: torch.dtype) -> None:
    x = torch.cat([random(9, 37) * scale for scale in (1e-3, 1.0, 20.0, 1000.0)]).to(dtype)
    out = torch.zeros_like(x)
    ops.softcap(threads, x, 30.0, out)
    close(out, 30.0 * torch.tanh(x.double() / 30.0))


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """x [T, heads, head_dim], cos and sin [T, 1, rotary_dim / 2], in float64."""
    half = cos.shape[-1]
    if interleaved:
        a, b = x[..., : 2 * half : 2], x[..., 1 : 2 * half : 2]
    else:
        a, b = x[..., :half], x[..., half : 2 * half]
    first, second = a * cos - b * sin, b * cos + a * sin
    turned = torch.stack([first, second], -1).flatten(-2) if interleaved else torch.cat([first, second], -1)
    return torch.cat([turned, x[..., 2 * half :]], -1)


def angles(positions: int, rotary_dim: int) -> torch.Tensor:
    frequencies = 10000.0 ** -(torch.arange(0, rotary_dim, 2) / rotary_dim)
    angle = torch.arange(positions)[:, None] * frequencies
    return torch.cat([angle.cos(), angle.sin()], 1)


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (80, 32), (128, 128), (24, 10)])
def test_rope(threads: _C.ThreadPool, dtype: torch.dtype, interleaved: bool, head_dim: int, rotary_dim: int) -> None:
    x, table = random(11, 3 * head_dim, dtype=dtype), angles(50, rotary_dim)
    positions = torch.randint(0, 50, (11,), generator=torch.Generator().manual_seed(3)).to(torch.int32)
    cos, sin = table.double()[positions][:, None].chunk(2, -1)
    reference = rotated(x.double().view(11, 3, head_dim), cos, sin, interleaved).view(11, -1)
    out = torch.zeros_like(x)
    ops.rope(threads, x, positions, table, head_dim, out, interleaved)
    close(out, reference, floor=3.0)
    ops.rope(threads, x, positions, table, head_dim, x, interleaved)
    assert torch.equal(x, out)


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("cache_dtype", EPSILON)
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_store_is_rope_then_store(
    threads: _C.ThreadPool, dtype: torch.dtype, cache_dtype: torch.dtype, interleaved: bool
) -> None:
    q, k, v = random(9, 4 * 32, dtype=dtype), random(9, 64, dtype=dtype, seed=1), random(9, 64, dtype=dtype, seed=2)
    positions, table = torch.arange(9, dtype=torch.int32), angles(9, 24)
    slots = torch.tensor([0, 5, -1, 17, 3, 30, 31, 8, 9], dtype=torch.int32)
    fused, parts = torch.zeros(2, 4 * 2 * 2 * 8 * 32, dtype=cache_dtype)
    fused_q, rope_q, rope_k = torch.zeros_like(q), torch.zeros_like(q), torch.zeros_like(k)
    cache = ops.KvCache(fused, 4, 8, 2, 32)
    ops.rope_store_kv(threads, q, k, v, positions, table, slots, cache, fused_q, interleaved)
    ops.rope(threads, q, positions, table, 32, rope_q, interleaved)
    ops.rope(threads, k, positions, table, 32, rope_k, interleaved)
    ops.store_kv(threads, rope_k, v, slots, ops.KvCache(parts, 4, 8, 2, 32))
    assert torch.equal(fused_q, rope_q) and torch.equal(fused, parts)
    assert fused.any()


@pytest.mark.parametrize("dtype", EPSILON)
def test_gather_rows(threads: _C.ThreadPool, dtype: torch.dtype) -> None:
    x, out = random(20, 33, dtype=dtype), torch.zeros(4, 33, dtype=dtype)
    rows = torch.tensor([19, 0, 7, 7], dtype=torch.int32)
    ops.gather_rows(threads, x, rows, out)
    assert torch.equal(out, x[rows])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_to_nearest_even(threads: _C.ThreadPool, dtype: torch.dtype) -> None:
    # Every pattern of the upper half with lower ones around a tie: normal, subnormal, infinite, too large.
    low = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x1000])
    bits = (torch.arange(65536)[:, None] << 16) | low
    values = bits.flatten().to(torch.uint32).view(torch.float32).view(4096, -1)
    table = ops.pack(threads, values, "float32", *values.shape)
    out = torch.zeros(values.shape, dtype=dtype)
    ops.embedding(threads, torch.arange(4096, dtype=torch.int32), table, out)
    expected = values.to(dtype)
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.nan_to_num(0.0).view(torch.int16), expected.nan_to_num(0.0).view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_value_survives_a_round_trip(threads: _C.ThreadPool, dtype: torch.dtype) -> None:
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).view(512, 128)
    out, zeros = torch.zeros_like(x), torch.full_like(x, -0.0)
    ops.add(threads, x, zeros, out)
    assert torch.equal(out.isnan(), x.isnan())
    assert torch.equal(out.nan_to_num(0.0).view(torch.int16), x.nan_to_num(0.0).view(torch.int16))


def test_errors_say_what_arrived(threads: _C.ThreadPool) -> None:
    x = random(4, 30)
    with pytest.raises(ValueError, match="rms_norm: width 7 does not divide the 30 columns"):
        ops.rms_norm(threads, x, torch.ones(7), 1e-5, x)
    with pytest.raises(ValueError, match=r"add: b must be \[4, 30\], got \[4, 29\]"):
        ops.add(threads, x, random(4, 29), x)
    with pytest.raises(ValueError, match="add: b must be float32, got bfloat16"):
        ops.add(threads, x, x.bfloat16(), x)
    with pytest.raises(ValueError, match="softcap: cap must be positive, got 0"):
        ops.softcap(threads, x, 0.0, x)
    with pytest.raises(ValueError, match="num_threads must be between 1 and 1024, got 0"):
        _C.ThreadPool(0)

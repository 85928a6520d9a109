# SPDX-License-Identifier: Apache-2.0
"""Packed weights hold the checkpoint's values, products match float64, and a row never depends on its batch."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize

from paged import _C

ops = _C.ops

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Relative to the largest output. The sum itself is float32 whatever the operands.
TOLERANCE = 4e-6

QUANTISED = {
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "q4_1": gguf.GGMLQuantizationType.Q4_1,
    "q5_0": gguf.GGMLQuantizationType.Q5_0,
    "q5_1": gguf.GGMLQuantizationType.Q5_1,
    "q4_k": gguf.GGMLQuantizationType.Q4_K,
    "q5_k": gguf.GGMLQuantizationType.Q5_K,
    "q6_k": gguf.GGMLQuantizationType.Q6_K,
}


@pytest.fixture(scope="module")
def threads() -> _C.ThreadPool:
    return _C.ThreadPool(3)


def random(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def spiky(shape: tuple[int, int], dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Rows in which a few numbers are far larger than the others: of 16 bits, some groups of codes are fine."""
    x = random(shape, seed=seed)
    spikes = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1)) < 0.005
    return torch.where(spikes, x * 30, x).to(dtype)


def quantised_rows(name: str, rows: int, cols: int) -> tuple[np.ndarray, torch.Tensor]:
    """Bytes of a quantised matrix and the values that the gguf package reads from them."""
    kind = QUANTISED[name]
    if name.endswith("_k"):  # the package cannot write these: random codes under sane scales
        block, size = gguf.GGML_QUANT_SIZES[kind]
        data = np.random.default_rng(0).integers(0, 256, (rows, cols // block, size), dtype=np.uint8)
        scales = np.random.default_rng(1).normal(0, 0.01, (rows, cols // block, 2)).astype(np.float16)
        if name == "q6_k":
            data[:, :, 208:210] = scales[:, :, :1].view(np.uint8)
        else:
            data[:, :, 0:4] = scales.view(np.uint8)
        data = data.reshape(rows, -1)
    else:
        data = quantize(random((rows, cols)).numpy(), kind)
    return data, torch.from_numpy(dequantize(data, kind))


def pack(threads: _C.ThreadPool, weights: torch.Tensor) -> _C.WeightMatrix:
    name = {dtype: name for name, dtype in DTYPES.items()}[weights.dtype]
    return ops.pack(threads, weights, name, *weights.shape)


def pack_quantised(threads: _C.ThreadPool, name: str, rows: int, cols: int) -> _C.WeightMatrix:
    return ops.pack(threads, quantised_rows(name, rows, cols)[0], name, rows, cols)


def are_coarse(x: torch.Tensor) -> torch.Tensor:
    """bool [rows, groups, 1]: of 16 bits, and with nothing above four times the row's root mean square."""
    if x.dtype == torch.float32:
        return torch.zeros(x.shape[0], x.shape[1] // 32, 1, dtype=torch.bool)
    largest = x.double().reshape(x.shape[0], -1, 32).abs().amax(2, keepdim=True)
    return largest**2 <= 16 * x.double().square().mean(1)[:, None, None]


def as_codes(x: torch.Tensor) -> torch.Tensor:
    """x as products with quantised weights read it, float64: 32 codes with a scale. Coarse: the largest of them is 127.
    Fine: the scale is the power of two with which it is below 2^15, or below 2^14 where it would be above 127 * 256."""
    groups = x.double().reshape(x.shape[0], -1, 32)
    largest = groups.abs().amax(2, keepdim=True)
    inverse = torch.full_like(largest, 127).float() / largest.float()  # 127 / tensor would multiply by a reciprocal
    coarse = (x.float().reshape(groups.shape) * inverse).round().double() * largest / 127
    fraction, exponent = torch.frexp(largest)  # largest = fraction * 2^exponent, fraction in [0.5, 1)
    exponent += (fraction * 65536 > 2 * 127 * 256).int()
    scale = torch.ldexp(torch.ones_like(largest), exponent - 15)
    codes = (groups / scale).round()
    assert codes.abs().max() <= 127 * 256
    return torch.where(are_coarse(x), coarse, codes * scale).reshape(x.shape)


def linear(threads: _C.ThreadPool, x: torch.Tensor, *parts: _C.WeightMatrix, **keywords: torch.Tensor) -> torch.Tensor:
    out = torch.full((x.shape[0], sum(part.rows for part in parts)), torch.nan)
    ops.linear(threads, x, list(parts), out, **keywords)
    return out


def check(out: torch.Tensor, x: torch.Tensor, weights: torch.Tensor) -> None:
    reference = x.double() @ weights.double().T
    assert (out.double() - reference).abs().max() <= TOLERANCE * reference.abs().max()


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (16, 8), (37, 45), (130, 513), (64, 4099)])
def test_floats_are_packed_exactly(threads: _C.ThreadPool, name: str, rows: int, cols: int) -> None:
    weights = random((rows, cols), DTYPES[name])
    out = torch.full((rows, cols), torch.nan)
    ops.unpack(threads, pack(threads, weights), out)
    assert torch.equal(out, weights.float())


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_weights_equal_the_gguf_package(threads: _C.ThreadPool, name: str) -> None:
    data, reference = quantised_rows(name, 37, 768)
    out = torch.full(reference.shape, torch.nan)
    ops.unpack(threads, ops.pack(threads, data, name, *reference.shape), out)
    assert torch.equal(out, reference)


@pytest.mark.parametrize("name", QUANTISED)
def test_kernels_decode_the_same_bits(threads: _C.ThreadPool, name: str) -> None:
    data, reference = quantised_rows(name, 37, 512)
    matrix = ops.pack(threads, data, name, *reference.shape)
    for rows in (1, 512):  # both decoders: in registers, and into scratch
        out = linear(threads, torch.eye(512)[:rows], matrix)
        assert torch.equal(out, reference.T[:rows])


@pytest.mark.parametrize("name", [*DTYPES, "q8_0", "q4_k"])
def test_no_rows_are_no_work(threads: _C.ThreadPool, name: str) -> None:
    matrix = pack_quantised(threads, name, 37, 512) if name in QUANTISED else pack(
        threads, random((37, 512), DTYPES[name])
    )  # fmt: skip
    assert linear(threads, torch.zeros(0, 512), matrix).shape == (0, 37)


@pytest.mark.parametrize("x_name", DTYPES)
@pytest.mark.parametrize("name", DTYPES)
# The last: as many panels as an item of work may have.
@pytest.mark.parametrize(("rows", "cols"), [(5, 3), (37, 45), (96, 576), (250, 2500), (4100, 96)])
def test_products_match_float64(threads: _C.ThreadPool, x_name: str, name: str, rows: int, cols: int) -> None:
    weights = random((rows, cols), DTYPES[name], seed=1)
    matrix = pack(threads, weights)
    for num_tokens in (1, 3, 4, 5, 8, 9, 12, 13, 48, 49, 101):
        x = random((num_tokens, cols), DTYPES[x_name], seed=num_tokens)
        check(linear(threads, x, matrix), x, weights)


@pytest.mark.parametrize("x_name", DTYPES)
@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 5, 9, 60])
def test_quantised_products_match_float64(threads: _C.ThreadPool, x_name: str, name: str, num_tokens: int) -> None:
    data, weights = quantised_rows(name, 133, 2304)
    x = spiky((num_tokens, 2304), DTYPES[x_name]) * torch.logspace(-3, 2, num_tokens).to(DTYPES[x_name])[:, None]
    out = linear(threads, x, ops.pack(threads, data, name, *weights.shape))
    # Sums of many terms: relative to what they are made of.
    size = x.double().abs() @ weights.double().abs().T
    assert ((out - as_codes(x) @ weights.double().T).abs() <= 2e-6 * size).all()
    if x_name == "float32":
        assert ((out - x.double() @ weights.double().T).abs() <= 5e-5 * size).all()


def test_codes_are_fine_where_numbers_are_large() -> None:
    x = spiky((64, 2304), torch.bfloat16)
    groups, codes = x.double().reshape(64, -1, 32), as_codes(x).reshape(64, -1, 32)
    coarse = are_coarse(x)
    assert 0.05 < 1 - coarse.double().mean() < 0.3
    # What is a bfloat16 is exact down to a 128th of the largest of a fine group.
    kept = ~coarse & (groups.abs() * 128 >= groups.abs().amax(2, keepdim=True))
    assert torch.equal(codes[kept], groups[kept])
    # Rounding costs less than a hundredth of what a row is made of, whatever is in it.
    error = (codes - groups).square().mean((1, 2)).sqrt()
    assert (error <= 0.01 * groups.square().mean((1, 2)).sqrt()).all()


@pytest.mark.parametrize("name", QUANTISED)
def test_products_of_extreme_codes_are_exact(threads: _C.ThreadPool, name: str) -> None:
    # All codes of x are as large as can be and its scale is 1; what the weights' codes can be does not overflow.
    rows, cols = 32, 512
    kind = QUANTISED[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.zeros((rows, cols // block, size), dtype=np.uint8)
    data[::2] = 0xFF
    data[1::2] = 0x80 if name == "q8_0" else 0
    one = np.frombuffer(np.float16(1).tobytes(), np.uint8)
    scale_at = 208 if name == "q6_k" else 0
    data[:, :, scale_at : scale_at + 2] = one
    if name.endswith("_1") or name in ("q4_k", "q5_k"):
        data[:, :, 2:4] = one
    data = data.reshape(rows, -1)
    weights = torch.from_numpy(dequantize(data, kind))
    x = torch.full((7, cols), 127 * 256.0)
    x[1], x[2, ::2], x[3, 1::2], x[4, ::3], x[5, ::2] = -127 * 256, -127 * 256, -127 * 256, 128, -32511
    reference = x.double() @ weights.double().T
    out = linear(threads, x, ops.pack(threads, data, name, rows, cols))
    assert torch.equal(as_codes(x), x.double())
    # The sum of a group may take more bits than a float32 has; each is rounded but once.
    size = x.double().abs() @ weights.double().abs().T
    assert ((out - reference).abs() <= 2e-7 * size).all()
    for row in range(7):
        assert torch.equal(
            linear(threads, x[row : row + 1], ops.pack(threads, data, name, rows, cols)), out[row : row + 1]
        )


def test_zeros_tiny_numbers_and_nan(threads: _C.ThreadPool) -> None:
    matrix = pack_quantised(threads, "q8_0", 40, 256)
    x = random((4, 256))
    x[0], x[1] = 0, 1e-38
    x[2, 77] = torch.nan
    out = linear(threads, x, matrix)
    assert not out[0].any() and out[1].abs().max() < 1e-30
    assert out[2].isnan().all() and out[3].isfinite().all()


@pytest.mark.parametrize("x_name", DTYPES)
@pytest.mark.parametrize("name", [*DTYPES, *QUANTISED])
def test_a_row_does_not_depend_on_its_batch(threads: _C.ThreadPool, x_name: str, name: str) -> None:
    rows, cols = 200, 2304
    if name in DTYPES:
        matrix = pack(threads, random((rows, cols), DTYPES[name]))
    else:
        matrix = pack_quantised(threads, name, rows, cols)
    x = spiky((512, cols), DTYPES[x_name], seed=2)
    whole = linear(threads, x, matrix)
    assert torch.equal(linear(_C.ThreadPool(16), x, matrix), whole)  # tiles of fewer rows
    alone = _C.ThreadPool(1)
    for size in (1, 2, 3, 4, 5, 11, 12, 13, 47, 49):
        begin = 7 * size
        assert torch.equal(linear(alone, x[begin : begin + size], matrix), whole[begin : begin + size])


@pytest.mark.parametrize("num_tokens", [6, 300])
def test_parts_bias_and_strides(threads: _C.ThreadPool, num_tokens: int) -> None:
    parts = [random((rows, 256), dtype, seed=rows) for rows, dtype in zip((40, 7, 33), DTYPES.values(), strict=True)]
    data, quantised = quantised_rows("q6_k", 50, 256)
    packed = [pack(threads, part) for part in parts] + [ops.pack(threads, data, "q6_k", 50, 256)]
    bias = random((130,), seed=9)
    wide_x, wide_out = random((num_tokens, 300), seed=8), torch.zeros(num_tokens, 140)
    x = wide_x[:, 10:266]
    x[:] = as_codes(x)  # so that they are exact in the last part too
    ops.linear(threads, x, packed, wide_out[:, 4:134], bias=bias)
    weights = torch.cat([part.double() for part in parts] + [quantised.double()])
    reference = x.double() @ weights.T + bias
    assert (wide_out[:, 4:134] - reference).abs().max() <= TOLERANCE * reference.abs().max()
    assert not wide_out[:, :4].any() and not wide_out[:, 134:].any()


@pytest.mark.parametrize("num_tokens", [8, 9, 17, 300])
def test_parts_of_several_quantised_formats(threads: _C.ThreadPool, num_tokens: int) -> None:
    names = ("q4_k", "q6_k", "q5_0", "q4_1")
    parts = [pack_quantised(threads, name, 50, 512) for name in names]
    x = spiky((num_tokens, 512), torch.bfloat16)
    together = linear(threads, x, *parts)
    for row in {0, 7, num_tokens - 1}:
        alone = [linear(threads, x[row : row + 1], part) for part in parts]
        assert torch.equal(together[row : row + 1], torch.cat(alone, 1))


def test_row_order_and_output_dtype(threads: _C.ThreadPool) -> None:
    weights, x = random((48, 64), torch.bfloat16), random((5, 64), torch.bfloat16, seed=1)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0)).to(torch.int32)
    matrix = ops.pack(threads, weights, "bfloat16", 48, 64, row_order=order)
    out = torch.zeros(5, 48, dtype=torch.bfloat16)
    ops.linear(threads, x, [matrix], out)
    assert torch.equal(out, linear(threads, x, pack(threads, weights[order])).bfloat16())


@pytest.mark.parametrize("name", ["float32", "bfloat16", "q5_0", "q4_k"])
@pytest.mark.parametrize("dtype", DTYPES.values())
def test_embedding(threads: _C.ThreadPool, name: str, dtype: torch.dtype) -> None:
    rows, cols = 70, 512
    if name in DTYPES:
        values = random((rows, cols), DTYPES[name])
        table = pack(threads, values)
    else:
        data, values = quantised_rows(name, rows, cols)
        table = ops.pack(threads, data, name, rows, cols)
    ids = torch.tensor([0, 69, 3, 3, 17], dtype=torch.int32)
    out = torch.zeros(5, cols, dtype=dtype)
    ops.embedding(threads, ids, table, out, scale=1.5)
    assert torch.equal(out, (values.float() * 1.5)[ids].to(dtype))


def test_errors_say_what_arrived(threads: _C.ThreadPool) -> None:
    matrix = pack(threads, random((8, 16)))
    with pytest.raises(ValueError, match=r"linear: part 0 is \[8, 16\] but x has 15 columns"):
        linear(threads, random((2, 15)), matrix)
    with pytest.raises(ValueError, match=r"linear: out must be \[2, 8\], got \[2, 9\]"):
        ops.linear(threads, random((2, 16)), [matrix], torch.zeros(2, 9))
    with pytest.raises(ValueError, match="out must be float32 or x's float32, got float16"):
        ops.linear(threads, random((2, 16)), [matrix], torch.zeros(2, 8, dtype=torch.float16))
    with pytest.raises(ValueError, match="q4_k rows come in groups of 256 columns, got 64"):
        ops.pack(threads, torch.zeros(10, dtype=torch.uint8), "q4_k", 1, 64)
    with pytest.raises(ValueError, match="64 bytes a row, got 100 bytes"):
        ops.pack(threads, torch.zeros(100, dtype=torch.uint8), "float32", 2, 16)
    with pytest.raises(ValueError, match="weight type 'q2_k' is not known; known: float32"):
        ops.pack(threads, torch.zeros(100, dtype=torch.uint8), "q2_k", 2, 16)
    with pytest.raises(ValueError, match=r"row_order\[1\] = 2 is outside the 2 rows"):
        ops.pack(threads, random((2, 16)), "float32", 2, 16, row_order=torch.tensor([0, 2], dtype=torch.int32))

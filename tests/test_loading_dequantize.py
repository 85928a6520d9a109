# SPDX-License-Identifier: Apache-2.0
"""Every storage type, bit for bit against the gguf package and numpy."""

import gguf
import numpy as np
import pytest

from paged.loading.dequantize import BLOCKS, dequantize, num_bytes_of

GGUF_TYPES = {name: gguf.GGMLQuantizationType[name.upper()] for name in BLOCKS if name.startswith("q")}


@pytest.mark.parametrize("type", GGUF_TYPES)
@pytest.mark.parametrize("rows", [1, 3, 700])
def test_quantised_bytes_give_the_floats_of_the_gguf_package(type: str, rows: int) -> None:
    shape = (rows, 2 * BLOCKS[type][0])
    data = np.random.default_rng(rows).integers(0, 256, num_bytes_of(type, shape), dtype=np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):  # random bytes make infinite and NaN scales too
        expected = gguf.quants.dequantize(data.reshape(rows, -1), GGUF_TYPES[type])
    found = dequantize(data, type, shape)
    assert found.dtype == np.float32 and found.shape == shape
    assert np.isfinite(expected).any()
    np.testing.assert_array_equal(found, expected)  # NaN equals NaN
    assert (np.signbit(found) == np.signbit(expected))[~np.isnan(expected)].all()


@pytest.mark.parametrize("type", ["float32", "float16", "bfloat16"])
def test_every_16_bit_pattern_keeps_its_value(type: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    if type == "float32":
        values = bits.astype(np.float32)
        found = dequantize(values.view(np.uint8), type, (256, 256))
    else:
        as_bfloat16 = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
        values = bits.view(np.float16).astype(np.float32) if type == "float16" else as_bfloat16
        found = dequantize(bits.view(np.uint8), type, (256, 256))
    np.testing.assert_array_equal(found.ravel(), values)


def test_bytes_may_lie_at_odd_addresses() -> None:
    values = np.arange(5, dtype=np.float32)
    shifted = np.concatenate([np.zeros(1, np.uint8), values.view(np.uint8)])[1:]
    np.testing.assert_array_equal(dequantize(shifted, "float32", (5,)), values)


def test_wrong_sizes_and_types_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"q4_0 tensor of shape \(2, 32\) has 36 bytes, got 35"):
        dequantize(np.zeros(35, np.uint8), "q4_0", (2, 32))
    with pytest.raises(ValueError, match="got 'q3_k'"):
        dequantize(np.zeros(1, np.uint8), "q3_k", (1,))
    assert num_bytes_of("q4_k", (2, 128)) is None

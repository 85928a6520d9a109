# SPDX-License-Identifier: Apache-2.0
"""The C++ executor against transformers, against the unfused program, and against itself in chunks."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from native_logits import native_logits
from tiny_models import VARIANTS, tiny_model

TOKEN_IDS = [random.Random(0).randrange(3, 320) for _ in range(75)]


@pytest.fixture(params=VARIANTS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    return request.param, tiny_model(request.param).save(tmp_path / request.param)


def test_logits_equal_transformers_in_float32(saved: tuple[str, Path]) -> None:
    name, folder = saved
    difference = np.abs(native_logits(folder, TOKEN_IDS) - tiny_model(name).logits(TOKEN_IDS).numpy())
    assert difference.max() < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_fusion_and_chunking_change_no_bit(saved: tuple[str, Path], dtype: str) -> None:
    _, folder = saved
    whole = native_logits(folder, TOKEN_IDS, dtype=dtype)  # type: ignore[arg-type]
    assert np.array_equal(native_logits(folder, TOKEN_IDS, dtype=dtype, fused=False), whole)  # type: ignore[arg-type]
    assert np.array_equal(native_logits(folder, TOKEN_IDS, dtype=dtype, chunk=7), whole)  # type: ignore[arg-type]
    assert np.array_equal(native_logits(folder, TOKEN_IDS, dtype=dtype, chunk=1), whole)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_keys_and_values_change_no_bit_either(saved: tuple[str, Path], dtype: str) -> None:
    _, folder = saved
    whole = native_logits(folder, TOKEN_IDS, dtype=dtype, kv_cache_dtype="int8")  # type: ignore[arg-type]
    for options in ({"fused": False}, {"chunk": 7}, {"chunk": 1}):
        again = native_logits(folder, TOKEN_IDS, dtype=dtype, kv_cache_dtype="int8", **options)  # type: ignore[arg-type]
        assert np.array_equal(again, whole)
    assert not np.array_equal(whole, native_logits(folder, TOKEN_IDS, dtype=dtype))  # type: ignore[arg-type]


def test_sharded_checkpoints_give_the_same_logits(tmp_path: Path) -> None:
    whole = tiny_model("qwen3").save(tmp_path / "whole")
    sharded = tiny_model("qwen3").save(tmp_path / "sharded", max_shard_size="40KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert np.array_equal(native_logits(sharded, TOKEN_IDS), native_logits(whole, TOKEN_IDS))

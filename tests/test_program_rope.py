# SPDX-License-Identifier: Apache-2.0
"""Rotary tables are those of transformers, and every way of applying them is a rotation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paged.model_config import ModelConfig
from paged.program.rope_tables import RopeSpec, rope_table
from tiny_models import build

_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 8.0},
        _LLAMA3,
        _YARN,
        {**_YARN, "truncate": False, "beta_fast": 24.0, "beta_slow": 2.0},
        {**_YARN, "attention_factor": 1.3},
        {**_YARN, "mscale": 0.8, "mscale_all_dim": 1.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_tables_equal_transformers(rope: dict[str, object], theta: float) -> None:
    positions = 16384
    keys = {"head_dim": 128, "max_position_embeddings": positions, "rope_parameters": {**rope, "rope_theta": theta}}
    tiny = build("Llama", keys)
    where = torch.arange(positions)[None]
    cos, sin = tiny.model.model.rotary_emb(torch.zeros(1), where)
    expected = torch.cat((cos[0, :, :64], sin[0, :, :64]), dim=1).numpy()
    table = rope_table(ModelConfig.from_hf(tiny.config).layers[0].rope, positions)
    assert table.dtype == np.float32
    # Beyond the rounding of cos and sin, one last bit of a frequency turns a pair by 6e-8 * position * frequency.
    # A frequency is one that libm rounded to the other side; hence few entries, and a bound that grows.
    near = np.isclose(table, expected, rtol=0.0, atol=5e-7)
    assert near.mean() > 0.9
    bound = 5e-7 + 1.5e-7 * np.arange(positions)[:, None]
    assert np.all(np.abs(table - expected) <= bound)


def test_long_tables_are_computed_in_slices() -> None:
    spec = RopeSpec("default", 10_000.0, 8)
    whole = rope_table(spec, 20_000)
    angle = 19_999.0 * np.float32(1.0)
    assert whole.shape == (20_000, 8)
    assert whole[19_999, 0] == pytest.approx(np.cos(angle), abs=1e-6)
    assert whole[19_999, 4] == pytest.approx(np.sin(angle), abs=1e-6)
    np.testing.assert_array_equal(whole[:100], rope_table(spec, 100))

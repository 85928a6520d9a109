# SPDX-License-Identifier: Apache-2.0
"""load_format="dummy": a model of which only config.json is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import paged
from tiny_models import tiny_model


def test_a_config_alone_generates_the_same_tokens_each_time(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_model("qwen3").config))
    params = paged.SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    outputs = []
    for _ in range(2):
        with paged.LLM(tmp_path, load_format="dummy", kv_cache_bytes=1 << 20) as llm:
            outputs.append(llm.generate([5, 6, 7], params).token_ids)
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 8


def test_without_a_config_it_says_what_it_takes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        paged.LLM(tmp_path, load_format="dummy")

# SPDX-License-Identifier: Apache-2.0
"""`quantize=`: float matrices rounded at load to blocks that the gguf package reads, near what they were."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize

import paged
from paged import _C
from paged.loading.checkpoint import open_checkpoint
from paged.quantise import QuantisedCheckpoint
from tiny_models import tiny_model

KINDS = {"q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_1": gguf.GGMLQuantizationType.Q4_1}
BYTES = {"q8_0": 34, "q4_1": 20}


def quantised(weights: torch.Tensor, kind: str) -> np.ndarray:
    rows, cols = weights.shape
    blocks = np.zeros((rows, cols // 32 * BYTES[kind]), np.uint8)
    name = str(weights.dtype).removeprefix("torch.")
    _C.ops.quantize(_C.ThreadPool(2), weights, name, rows, cols, blocks, kind)
    return blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_no_worse_than_the_gguf_package(kind: str, dtype: torch.dtype) -> None:
    weights = torch.randn(40, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    weights[3], weights[4] = 0, 0.25
    exact = weights.float().numpy()
    ours = dequantize(quantised(weights, kind), KINDS[kind])
    theirs = dequantize(quantize(exact, KINDS[kind]), KINDS[kind])
    assert ((ours - exact) ** 2).sum() <= ((theirs - exact) ** 2).sum() * 1.001
    assert not ours[3].any() and np.allclose(ours[4], 0.25, rtol=1e-3)
    groups = exact.reshape(-1, 32)
    bound = np.ptp(groups, axis=1) / 10 if kind == "q4_1" else np.abs(groups).max(1) / 253
    assert (np.abs(ours - exact).reshape(-1, 32).max(1) <= bound + 1e-4).all()


def test_what_cannot_be_quantised_is_said() -> None:
    with pytest.raises(ValueError, match="must be finite and at most 65504, got nan"):
        quantised(torch.full((1, 32), torch.nan), "q8_0")
    with pytest.raises(ValueError, match="quantize must be 'int8', 'int4' or None, got 'int2'"):
        paged.LLM("x", quantize="int2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiple of 32 columns, got 48"):
        _C.ops.quantize(_C.ThreadPool(1), torch.zeros(2, 48), "float32", 2, 48, np.zeros(102, np.uint8), "q8_0")


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_quantised_checkpoint_answers_like_its_dequantised_weights(tmp_path: Path, quantize: str) -> None:
    tiny = tiny_model("llama")
    tiny.save(tmp_path)
    params = paged.SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    prompts = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9]]
    options = {"quantize": quantize, "kv_cache_bytes": 1 << 20, "max_model_len": 64}
    with open_checkpoint(tmp_path) as checkpoint:
        weights = QuantisedCheckpoint(checkpoint, quantize, _C.ThreadPool(1))  # type: ignore[arg-type]
        kinds = {name: weights.tensor(name).type for name in weights.names()}
    assert kinds["model.embed_tokens.weight"] == "q8_0"
    assert kinds["model.layers.0.mlp.up_proj.weight"] == ("q8_0" if quantize == "int8" else "q4_1")
    assert kinds["model.norm.weight"] == "float32"
    with paged.LLM(tmp_path, **options) as llm:
        together = [answer.token_ids for answer in llm.generate(prompts, params, use_tqdm=False)]
        assert [llm.generate(prompt, params, use_tqdm=False).token_ids for prompt in prompts] == together

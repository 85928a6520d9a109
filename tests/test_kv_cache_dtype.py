# SPDX-License-Identifier: Apache-2.0
"""`kv_cache_dtype`: what it takes, that int8 keys and values are those of the torch backend, move with their blocks,
and change no bit with the batch; what they cost in accuracy on a real model."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import paged
from backends import open_llm, until
from native_logits import native_logits
from paged.model_config import ModelConfig
from paged.models import record
from paged.program.passes import fuse
from paged.torch_backend.interpreter import TorchExecutor
from paged.torch_backend.kv_cache import quantise
from test_llm_invariance import OPTIONS, greedy, prompts_for
from test_quantised_models import losses, tokens_of
from tiny_models import VARIANTS, tiny_model

GREEDY = paged.SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)


def ids(seed: int, count: int) -> list[int]:
    return random.Random(seed).choices(range(3, 300), k=count)


@pytest.mark.parametrize("group", [32, 80])
def test_quantise_by_definition(group: int) -> None:
    rows = torch.randn(50, 3, 80, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 50)[:, None, None]
    codes, scales = quantise(rows, group)
    groups = range(0, 80, group)
    assert codes.dtype == torch.int8 and codes.shape == rows.shape and scales.shape == (50, 3, len(groups))
    for index, start in enumerate(groups):
        of_group, x = (tensor[..., start : start + group] for tensor in (codes, rows))
        step = scales[..., index : index + 1]
        assert (of_group.abs().amax(-1) == 127).all() and (of_group > -128).all()
        torch.testing.assert_close(127 * step, x.abs().amax(-1, keepdim=True))
        assert ((of_group * step - x).abs() <= (0.5 + 1e-4) * step).all(), "half a step at most"
    zeros, none = quantise(torch.zeros(1, 64), 32)
    assert not zeros.any() and not none.any()
    assert quantise(torch.tensor([[1.0, torch.nan], [torch.inf, 1.0]]), 32)[1].isnan().all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_the_torch_backend(variant: str, tmp_path: Path) -> None:
    """As far as rounding allows: a key that comes out otherwise in its last bit may get the neighbouring code."""
    tiny, token_ids = tiny_model(variant), ids(0, 75)
    config = ModelConfig.from_hf(tiny.config)
    native = native_logits(tiny.save(tmp_path / variant), token_ids, kv_cache_dtype="int8")

    def by_torch(program: Any) -> torch.Tensor:
        return TorchExecutor(program, tiny.weights).forward(token_ids)

    expected = by_torch(fuse(record(config, "float32", "int8")))
    rounding = (expected - by_torch(fuse(record(config, "float32")))).abs().mean()
    off = (torch.from_numpy(native) - expected).abs().mean()
    assert 0 < off < rounding / 20, f"{off} against {rounding} of what int8 itself changes"
    assert torch.equal(expected, by_torch(record(config, "float32", "int8"))), "the unfused program"


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options_do_not_change_output(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = tiny_model("gemma3").save(tmp_path)
    with paged.LLM(folder, dtype="float32", kv_cache_dtype="int8") as llm:
        outputs = greedy(llm, prompts_for(0))
    with paged.LLM(folder, dtype="float32", kv_cache_dtype="int8", **options) as llm:
        assert greedy(llm, prompts_for(0)[::-1])[::-1] == outputs
        assert greedy(llm, prompts_for(0)) == outputs  # now from the prefix cache, where there is one


def test_preemption_does_not_change_output(folder: Path) -> None:
    with open_llm(folder, "cpu", kv_cache_dtype="int8") as llm:
        outputs, block = greedy(llm, prompts_for(0)), llm._bytes_per_block
    with open_llm(folder, "cpu", kv_cache_dtype="int8", kv_cache_bytes=11 * block) as llm:
        assert greedy(llm, prompts_for(0)) == outputs
        assert llm.stats().num_preemptions > 0
        assert llm.stats().num_free_blocks == 11


def test_blocks_take_their_scales_to_the_host_and_back(folder: Path) -> None:
    with open_llm(folder, "cpu", kv_cache_dtype="int8", enable_prefix_caching=False) as oracle:
        block = oracle._bytes_per_block
        sizes = {"kv_cache_bytes": 24 * block, "host_cache": 200 * block, "max_model_len": 180}
        with open_llm(folder, "cpu", kv_cache_dtype="int8", **sizes) as llm, llm.session() as session:
            session.generate(ids(1, 90), GREEDY)
            tokens, resident = session.token_ids, session.explain().resident_bytes
            assert resident % block == 0 and resident // block == 5
            until(lambda: session.demote("host").status == "accepted")
            until(lambda: session.explain().host_bytes == resident)
            for seed in range(2, 6):  # others need the whole pool
                llm.generate(ids(seed, 150), GREEDY)
            answer = session.generate(ids(9, 4), GREEDY)
            assert answer.num_cached_tokens == 16 * 5, "all came back from the host"
            assert answer.token_ids == oracle.generate(tokens + ids(9, 4), GREEDY).token_ids
            assert llm.stats().num_bytes_stored >= resident


def test_sessions_in_files(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "session.safetensors"
    with open_llm(folder, "cpu", kv_cache_dtype="int8") as llm, llm.session() as session:
        session.generate(ids(1, 90), GREEDY)
        tokens = session.token_ids
        session.save(path)
        expected = session.generate(ids(2, 5), GREEDY).token_ids
    with open_llm(folder, "cpu", kv_cache_dtype="int8") as other, other.load_session(path) as again:
        assert again.token_ids == tokens
        answer = again.generate(ids(2, 5), GREEDY)
        assert answer.token_ids == expected and answer.num_cached_tokens == 16 * 5
    for options in ({}, {"kv_cache_dtype": "bfloat16"}):
        with (
            open_llm(folder, "cpu", **options) as other,
            pytest.raises(ValueError, match=r"its kv_cache_dtype is 'int8', this engine's is '(b?float)"),
        ):
            other.load_session(path)


def test_a_fork_shares_and_goes_its_own_way(folder: Path) -> None:
    with open_llm(folder, "cpu", kv_cache_dtype="int8") as llm, llm.session() as session:
        session.generate(ids(1, 90), GREEDY)
        tokens = session.token_ids
        with session.fork() as fork:
            answers = [one.generate(ids(2 + i, 5), GREEDY).token_ids for i, one in enumerate((session, fork))]
        assert answers == [llm.generate(tokens + ids(2 + i, 5), GREEDY).token_ids for i in range(2)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_other_floats(folder: Path, dtype: str) -> None:
    """Of a wider cache nothing shows; a narrower one rounds."""
    with open_llm(folder, "cpu", dtype="bfloat16") as llm:
        outputs = greedy(llm, prompts_for(0))
    with open_llm(folder, "cpu", dtype="bfloat16", kv_cache_dtype=dtype) as llm:
        assert f" of {dtype} " in repr(llm)
        if dtype != "float16":
            assert greedy(llm, prompts_for(0)) == outputs


def test_the_torch_backend_has_it(folder: Path) -> None:
    with open_llm(folder, "torch", kv_cache_dtype="int8") as llm:
        outputs = greedy(llm, prompts_for(0)[:3])
    with open_llm(folder, "cpu", kv_cache_dtype="int8") as llm:
        same = [a == b for out, other in zip(greedy(llm, prompts_for(0)[:3]), outputs, strict=True)
                for a, b in zip(out, other, strict=True)]  # fmt: skip
    assert sum(same) > len(same) / 2, "near-ties may part them"


def test_context_in_the_same_bytes(tmp_path: Path) -> None:
    config = tiny_model("qwen3").config | {"head_dim": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokens = {}
    for dtype in ("float32", "bfloat16", "float16", "int8"):
        options = {"dtype": "bfloat16", "kv_cache_dtype": dtype, "kv_cache_bytes": 4 << 20, "load_format": "dummy"}
        with paged.LLM(tmp_path, max_num_sequences=512, **options) as llm:
            tokens[dtype] = 16 * llm.stats().num_blocks
            assert (4 << 20) - llm._bytes_per_block < llm.stats().num_blocks * llm._bytes_per_block <= 4 << 20
    assert tokens["int8"] >= 1.7 * tokens["bfloat16"] == 1.7 * tokens["float16"]
    assert tokens["int8"] >= 3.5 * tokens["float32"]


def test_errors(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"kv_cache_dtype must be 'auto', .* or 'int8', got 'int4'"):
        open_llm(folder, "cpu", kv_cache_dtype="int4")
    with pytest.raises(ValueError, match=r"a GPU keeps keys and values .* leave kv_cache_dtype='auto'"):
        open_llm(folder, "cuda", kv_cache_dtype="int8")


def test_a_real_model_hardly_notices(real_models: Mapping[str, Path]) -> None:
    """Against the float32 cache: the bounds that docs/memory.md states."""
    path = real_models["smollm2-135m-instruct.gguf"]
    token_ids = tokens_of(path)
    exact = native_logits(path, token_ids)
    rounded = native_logits(path, token_ids, kv_cache_dtype="int8")
    off = np.abs(rounded - exact)
    moved = losses(rounded, token_ids) - losses(exact, token_ids)
    change, error = np.expm1(moved.mean()), moved.std() / len(moved) ** 0.5
    agree = (rounded.argmax(1) == exact.argmax(1)).mean()
    print(
        f"max {off.max():.4f}, mean {off.mean():.5f}; perplexity {change:+.4%} +- {error:.4%}; same token {agree:.3%}"
    )
    assert 0 < off.max() < 1.0 and off.mean() < 0.06
    assert abs(change) < 0.003 + error
    assert agree > 0.98

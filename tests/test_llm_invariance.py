# SPDX-License-Identifier: Apache-2.0
"""Greedy output in float32 is the same whatever the block size, cache, chunking, batch, pool and threads, and equal to
transformers'."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

import paged
from tiny_models import tiny_model

MODELS = ["llama", "qwen2", "qwen3", "gemma3"]
NUM_PROMPTS = 12
MAX_TOKENS = 24

# name -> options of LLM. A pool of 16 blocks of 16 tokens holds one or two of the sequences: most are preempted.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "block size 1": {"block_size": 1},
    "block size 64": {"block_size": 64},
    "no prefix cache": {"enable_prefix_caching": False},
    "chunks of 7": {"max_num_batched_tokens": 7, "max_num_sequences": 4},
    "one at a time": {"max_num_sequences": 1},
    "one thread": {"num_threads": 1},
    "three threads": {"num_threads": 3},
    "sixteen threads": {"num_threads": 16},
}


def prompts_for(seed: int) -> list[list[int]]:
    """Random prompts, half of which begin alike."""
    rng = random.Random(seed)
    shared = [rng.randrange(3, 320) for _ in range(40)]
    prompts = []
    for index in range(NUM_PROMPTS):
        own = [rng.randrange(3, 320) for _ in range(rng.randrange(1, 90))]
        prompts.append(shared + own if index % 2 else own)
    return prompts


def greedy(llm: paged.LLM, prompts: list[list[int]]) -> list[list[int]]:
    params = paged.SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
    return [completion.token_ids for completion in llm.generate(prompts, params, use_tqdm=False)]


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, list[list[int]]]:
    """(model name, its folder, outputs with the default options)."""
    name = request.param
    folder = tiny_model(name).save(tmp_path_factory.mktemp(name))
    with paged.LLM(folder, dtype="float32") as llm:
        return name, folder, greedy(llm, prompts_for(0))


def test_equal_to_transformers(case: tuple[str, Path, list[list[int]]]) -> None:
    """Token by token: each must be the largest logit of transformers, or within rounding of it."""
    name, _, outputs = case
    for prompt, output in zip(prompts_for(0), outputs, strict=True):
        logits = tiny_model(name).logits(prompt + output)[len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(output)[:, None])[:, 0]
        assert len(output) == MAX_TOKENS
        assert (logits.max(dim=1).values - chosen).max() < 1e-4


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options_do_not_change_output(case: tuple[str, Path, list[list[int]]], options: dict[str, Any]) -> None:
    _, folder, outputs = case
    with paged.LLM(folder, dtype="float32", **options) as llm:
        assert greedy(llm, prompts_for(0)) == outputs
        assert greedy(llm, prompts_for(0)) == outputs  # now from the prefix cache, where there is one


def test_order_and_company_do_not_change_output(case: tuple[str, Path, list[list[int]]]) -> None:
    _, folder, outputs = case
    prompts = prompts_for(0)
    with paged.LLM(folder, dtype="float32") as llm:
        assert greedy(llm, prompts[::-1])[::-1] == outputs
        assert [greedy(llm, [prompt])[0] for prompt in prompts] == outputs


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_preemption_does_not_change_output(case: tuple[str, Path, list[list[int]]], prefix_caching: bool) -> None:
    name, folder, outputs = case
    config = tiny_model(name).config
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    bytes_per_token = 2 * 4 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim
    pool = 176 * bytes_per_token  # the longest sequence has 153 tokens
    options = {"kv_cache_bytes": pool, "block_size": 8, "enable_prefix_caching": prefix_caching}
    with paged.LLM(folder, dtype="float32", **options) as llm:
        assert greedy(llm, prompts_for(0)) == outputs
        assert llm.stats().num_preemptions > 0
        assert llm.stats().num_free_blocks == 22


def test_seeded_sampling_does_not_depend_on_the_batch(case: tuple[str, Path, list[list[int]]]) -> None:
    _, folder, _ = case
    prompts = prompts_for(1)
    params = [
        paged.SamplingParams(temperature=1.0, top_k=50, top_p=0.9, seed=i, max_tokens=16, ignore_eos=True)
        for i in range(len(prompts))
    ]
    with paged.LLM(folder, dtype="float32") as llm:
        together = [c.token_ids for c in llm.generate(prompts, params, use_tqdm=False)]
    with paged.LLM(folder, dtype="float32", max_num_batched_tokens=5, max_num_sequences=2, seed=99) as llm:
        alone = [llm.generate(prompt, p).token_ids for prompt, p in zip(prompts, params, strict=True)]
    assert together == alone


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_invariant_too(case: tuple[str, Path, list[list[int]]], dtype: str) -> None:
    _, folder, _ = case
    with paged.LLM(folder, dtype=dtype) as llm:
        outputs = greedy(llm, prompts_for(2))
    with paged.LLM(folder, dtype=dtype, max_num_batched_tokens=9, max_num_sequences=3, block_size=4) as llm:
        assert greedy(llm, prompts_for(2)) == outputs


def test_torch_backend_gives_the_same_tokens(case: tuple[str, Path, list[list[int]]]) -> None:
    """The same engine over the torch interpreter, whose arithmetic rounds differently: near-ties may differ."""
    name, folder, outputs = case
    with paged.LLM(folder, dtype="float32", device="torch") as llm:
        others = greedy(llm, prompts_for(0))
    for prompt, output, other in zip(prompts_for(0), outputs, others, strict=True):
        at = next((i for i, (a, b) in enumerate(zip(output, other, strict=True)) if a != b), None)
        if at is not None:
            logits = tiny_model(name).logits(prompt + output[:at])[-1]
            assert abs(logits[output[at]] - logits[other[at]]) < 1e-4

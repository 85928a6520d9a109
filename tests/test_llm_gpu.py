# SPDX-License-Identifier: Apache-2.0
"""The engine on a GPU (or on the emulator, in a build with PAGED_GPU=emulation) against the CPU backend, its oracle."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import paged
from paged import _C
from paged.loading.checkpoint import open_checkpoint
from paged.model_config import ModelConfig
from paged.models import record
from paged.program.ir import DType
from paged.program.native import compile_program
from paged.program.passes import fuse
from paged.program.plan import plan
from tiny_models import VARIANTS, tiny_model

if _C.gpu_devices()[0] == 0:
    pytest.skip(f"no GPU: {_C.gpu_devices()[1]}", allow_module_level=True)

DEVICE = "hip" if _C.gpu_runtime() == "hip" else "cuda"
EMULATED = _C.gpu_runtime() == "emulation"
NUM_PROMPTS, MAX_TOKENS = (4, 6) if EMULATED else (12, 24)
MIB = 1 << 20


def gpu_logits(path: Path, token_ids: list[int], dtype: DType, *, chunk: int, block_size: int) -> torch.Tensor:
    """float32 [len(token_ids), vocab_size], by the executor without an engine around it."""
    size = len(token_ids)
    num_blocks = -(-size // block_size)
    threads = _C.ThreadPool(2)
    with open_checkpoint(path) as checkpoint:
        program = fuse(record(ModelConfig.from_hf(checkpoint.config), dtype))
        arena = plan(program, max_tokens=size, max_logits_rows=size)
        native = compile_program(program, arena, checkpoint, threads, max_model_len=size, gpu_index=0)
    executor = _C.GpuExecutor(
        program=native, max_seq_len=size, num_blocks=num_blocks, block_size=block_size, max_num_sequences=size,
        device=0, batch_invariant=False, blas_folders=[],
    )  # fmt: skip
    block_table = np.random.default_rng(0).permutation(num_blocks).astype(np.int32)
    logits = []
    for start in range(0, size, chunk):
        positions = np.arange(start, min(start + chunk, size), dtype=np.int32)
        logits.append(
            executor.run(
                token_ids=np.array(token_ids, np.int32)[positions], positions=positions,
                slot_mapping=block_table[positions // block_size] * block_size + positions % block_size,
                query_start=np.array([0, len(positions)], np.int32), seq_lens=positions[-1:] + 1,
                block_tables=block_table[None], logits_rows=np.arange(len(positions), dtype=np.int32),
            )
        )  # fmt: skip
    return torch.from_numpy(np.concatenate(logits))


@pytest.mark.parametrize("name", list(VARIANTS)[:4] if EMULATED else VARIANTS)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    tiny = tiny_model(name)
    token_ids = random.Random(0).choices(range(tiny.config["vocab_size"]), k=20 if EMULATED else 90)
    expected = tiny.logits(token_ids)
    folder = tiny.save(tmp_path)
    for chunk, block_size in ((len(token_ids), 16), (7, 64)):
        logits = gpu_logits(folder, token_ids, "float32", chunk=chunk, block_size=block_size)
        torch.testing.assert_close(logits, expected, rtol=0.0, atol=5e-5)
    for dtype in ("bfloat16", "float16"):
        rounded = gpu_logits(folder, token_ids, dtype, chunk=11, block_size=16)
        assert (rounded - expected).std() < 0.05 * expected.std()


def prompts_for(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    shared = [rng.randrange(3, 320) for _ in range(40)]
    prompts = []
    for index in range(NUM_PROMPTS):
        own = [rng.randrange(3, 320) for _ in range(rng.randrange(1, 20 if EMULATED else 90))]
        prompts.append(shared + own if index % 2 else own)
    return prompts


def generate(llm: paged.LLM, prompts: list[list[int]], temperature: float = 0.0) -> list[list[int]]:
    params = paged.SamplingParams(
        temperature=temperature, top_k=20, top_p=0.95, seed=7, max_tokens=MAX_TOKENS, ignore_eos=True
    )
    return [completion.token_ids for completion in llm.generate(prompts, params, use_tqdm=False)]


def gpu_llm(folder: Path, **options: Any) -> paged.LLM:
    return paged.LLM(folder, device=DEVICE, **{"kv_cache_bytes": 16 * MIB, "max_num_batched_tokens": 512, **options})


@pytest.fixture(scope="module", params=["llama", "gemma3"] if EMULATED else ["llama", "qwen2", "qwen3", "gemma3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tiny_model(request.param).save(tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_equal_those_of_the_cpu(folder: Path, temperature: float) -> None:
    """In float32 the two round differently, but a token differs only where two logits (or a threshold) nearly tie."""
    with paged.LLM(folder, dtype="float32") as llm:
        expected = generate(llm, prompts_for(0), temperature)
    with gpu_llm(folder, dtype="float32") as llm:
        found = generate(llm, prompts_for(0), temperature)
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= NUM_PROMPTS - 1


def test_company_chunks_cache_and_preemption_do_not_change_bits(folder: Path) -> None:
    prompts = prompts_for(1)
    with gpu_llm(folder, dtype="bfloat16", batch_invariant=True) as llm:
        expected = generate(llm, prompts)
        assert generate(llm, prompts) == expected  # from the prefix cache
        assert [generate(llm, [prompt])[0] for prompt in prompts] == expected
    others: list[dict[str, Any]] = [
        {"max_num_batched_tokens": 32, "max_num_sequences": 8}, {"block_size": 16}, {"enable_prefix_caching": False},
        {"max_num_sequences": 3, "max_num_batched_tokens": 64},
    ]  # fmt: skip
    for options in others[:2] if EMULATED else others:
        with gpu_llm(folder, dtype="bfloat16", batch_invariant=True, **options) as llm:
            assert generate(llm, prompts) == expected, options


def test_an_answer_in_the_cache_changes_no_bits(folder: Path) -> None:
    """Generated tokens go through other kernels than prompts, so a next turn computes them again."""
    options: dict[str, Any] = {"dtype": "bfloat16", "batch_invariant": True, "block_size": 16}
    params = paged.SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True)
    prompt = prompts_for(3)[0][:24]
    prompt += [7] * (24 - len(prompt))
    with gpu_llm(folder, **options) as llm:
        turn = [*prompt, *llm.generate(prompt, params).token_ids, 5, 6]
        found = llm.generate(turn, params)
        assert found.num_cached_tokens == 16
        assert llm.generate(turn, params).num_cached_tokens == 48
    with gpu_llm(folder, enable_prefix_caching=False, **options) as llm:
        assert llm.generate(turn, params).token_ids == found.token_ids


def test_a_small_pool_preempts_and_changes_nothing(folder: Path) -> None:
    prompts = prompts_for(2)
    with gpu_llm(folder, dtype="float32", batch_invariant=True, block_size=16) as llm:
        expected = generate(llm, prompts)
        bytes_per_block = _kv_bytes_per_token(folder) * 16
    with gpu_llm(
        folder, dtype="float32", batch_invariant=True, block_size=16, kv_cache_bytes=12 * bytes_per_block
    ) as llm:
        assert generate(llm, prompts) == expected


def test_stream_cancel_and_two_engines(folder: Path) -> None:
    with gpu_llm(folder, dtype="float32") as one, gpu_llm(folder, dtype="float32") as other:
        params = paged.SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
        stream = one.stream(prompts_for(0)[0], params)
        first = list(itertools.chain.from_iterable(chunk.token_ids for chunk in itertools.islice(stream, 1)))
        stream.close()
        assert generate(other, prompts_for(0)[:1])[0][: len(first)] == first
        assert generate(one, prompts_for(0)) == generate(other, prompts_for(0))


@pytest.mark.skipif(EMULATED, reason="the emulated device has no memory of its own")
def test_close_gives_the_memory_back(folder: Path) -> None:
    gpu_llm(folder, dtype="bfloat16").close()  # what the driver keeps for good is there now
    before = _C.gpu_free_bytes(0)
    for _ in range(20):
        with gpu_llm(folder, dtype="bfloat16", kv_cache_bytes=256 * MIB) as llm:
            generate(llm, prompts_for(0)[:2])
            assert before - _C.gpu_free_bytes(0) > 256 * MIB
        assert abs(before - _C.gpu_free_bytes(0)) <= 64 * MIB


@pytest.mark.skipif(EMULATED, reason="the emulated device has no memory limit worth filling")
def test_too_large_a_cache_says_what_to_set(folder: Path) -> None:
    with pytest.raises(RuntimeError, match=r"kv_cache_bytes or gpu_memory_utilization"):
        gpu_llm(folder, dtype="bfloat16", kv_cache_bytes=1 << 38)
    with gpu_llm(folder, dtype="bfloat16") as llm:
        assert len(generate(llm, prompts_for(0))) == NUM_PROMPTS


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"there is cuda:0|there is hip:0"):
        paged.LLM("smollm2-135m", device=f"{DEVICE}:99")


def _kv_bytes_per_token(folder: Path) -> int:
    with open_checkpoint(folder) as checkpoint:
        cache = record(ModelConfig.from_hf(checkpoint.config), "float32").kv_cache
    return 2 * cache.num_layers * cache.num_kv_heads * cache.head_dim * 4

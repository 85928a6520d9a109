# SPDX-License-Identifier: Apache-2.0
"""The whole engine on a GPU: the workloads that vLLM was measured on, with random weights of three model shapes.

Knows no table and no option; `bench_engine.py --device cuda` prints what it returns.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import paged
from table import Record

_BENCH = "bench_engine"
_LLAMA: Mapping[str, Any] = MappingProxyType(
    {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "vocab_size": 128256, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 32768, "bos_token_id": 0, "eos_token_id": 1,
    }
)  # fmt: skip
SHAPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "8B": {
            **_LLAMA, "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "head_dim": 128,
            "tie_word_embeddings": False,
        },
        "1B": {
            **_LLAMA, "hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "head_dim": 64,
            "tie_word_embeddings": True,
        },
        "0.6B": {
            **_LLAMA, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024,
            "num_hidden_layers": 28, "intermediate_size": 3072, "head_dim": 128, "num_attention_heads": 16,
            "vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": True,
        },
    }
)  # fmt: skip
# Bytes of weights that a decode step reads.
STEP_BYTES: Mapping[str, float] = MappingProxyType({"8B": 15.01e9, "1B": 2.47e9, "0.6B": 1.19e9})

# vLLM 0.25.1 on the same chips: output tokens a second, but for the first token (ms) and the prompts (tokens a second).
VLLM: Mapping[str, Mapping[str, Mapping[str, float]]] = MappingProxyType(
    {
        "H100": {
            "8B": {
                "nano256": 8200, "batch 1": 153, "first token": 11.9, "batch 16": 2265, "batch 64": 7198,
                "prompts 64 x 512": 44600,
            },
            "1B": {
                "nano256": 26500, "batch 1": 417, "first token": 8.3, "batch 16": 6548, "batch 64": 20777,
                "batch 256": 33701, "prompts 64 x 512": 253000, "prompts 4 x 16k": 175000,
            },
            "0.6B": {
                "nano256": 18500, "batch 1": 557, "first token": 9.1, "batch 16": 5979, "batch 64": 17285,
                "batch 256": 29884, "prompts 64 x 512": 291000, "prompts 4 x 16k": 191000,
            },
        },
        "H200": {
            "8B": {
                "nano256": 9760, "batch 1": 204, "first token": 9.5, "batch 16": 2982, "batch 64": 9218,
                "batch 256": 18260, "prompts 64 x 512": 44600, "prompts 4 x 16k": 33800,
            },
            "1B": {
                "nano256": 35450, "batch 1": 690, "first token": 5.6, "batch 16": 9397, "batch 64": 26234,
                "batch 256": 49655, "prompts 64 x 512": 272000, "prompts 4 x 16k": 180000,
            },
            "0.6B": {
                "nano256": 22900, "batch 1": 591, "first token": 7.7, "batch 16": 8496, "batch 64": 20006,
                "batch 256": 35663, "prompts 64 x 512": 423000, "prompts 4 x 16k": 195000,
            },
        },
    }
)  # fmt: skip

CASES = (
    "batch 1", "first token", "batch 16", "batch 64", "batch 256", "prompts 64 x 512", "prompts 4 x 16k", "nano256",
)  # fmt: skip


def measure(device: str, shapes: list[str], cases: list[str], options: Mapping[str, Any]) -> Iterator[Record]:
    """Every case of every shape. `options` go to `paged.LLM`."""
    copy_rate = device_copy_rate(device)
    yield Record(_BENCH, "device copy", "torch", "rate", copy_rate / 1e9, "GB/s")
    for shape in shapes:
        start = time.perf_counter()
        with engine(device, shape, options) as llm:
            yield Record(_BENCH, f"{shape} construct", "paged", "time", time.perf_counter() - start, "s")
            peers = next((table for chip, table in VLLM.items() if chip in repr(llm)), {}).get(shape, {})
            for case in cases:
                yield from _measure_case(llm, shape, case, peers.get(case), copy_rate)


@contextmanager
def engine(device: str, shape: str, options: Mapping[str, Any]) -> Iterator[paged.LLM]:
    """A model of the shape with random weights; nothing is cached between requests."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(dict(SHAPES[shape])))
        given = {"max_num_sequences": 256, "enable_prefix_caching": False, "max_model_len": 17000, **options}
        with paged.LLM(folder, device=device, load_format="dummy", **given) as llm:
            yield llm


def device_copy_rate(device: str) -> float:
    """Bytes read and written a second by a copy much larger than the L2."""
    import torch

    source = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    seconds = []
    for _ in range(10):
        events[0].record()
        target.copy_(source)
        events[1].record()
        torch.cuda.synchronize()
        seconds.append(events[0].elapsed_time(events[1]) * 1e-3)
    del source, target
    torch.cuda.empty_cache()
    return 2 * (1 << 30) / statistics.median(seconds)


def _measure_case(llm: paged.LLM, shape: str, case: str, peer: float | None, copy_rate: float) -> Iterator[Record]:
    value, unit = _RUNS[case.split()[0]](llm, case)
    ratio = None if peer is None else peer / value if unit == "ms" else value / peer
    reference = None if peer is None else "vLLM 0.25.1, same chip"
    yield Record(_BENCH, f"{shape} {case}", "paged", case.split()[0], value, unit, reference, ratio)
    if case == "batch 1":
        limit = copy_rate / STEP_BYTES[shape]
        yield Record(_BENCH, f"{shape} {case}", "paged", "batch", value, unit, "bandwidth limit", value / limit)


def _ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randint(0, 10000) for _ in range(count)]


def _params(max_tokens: int) -> paged.SamplingParams:
    return paged.SamplingParams(temperature=0.6, ignore_eos=True, max_tokens=max_tokens)


def _decode_rate(llm: paged.LLM, case: str) -> tuple[float, str]:
    """Tokens a second after the first ones: a run with many tokens less one with a single token each."""
    batch = int(case.split()[1])
    prompt, steps = (128, 256) if batch == 1 else (512, 128)
    rng = random.Random(1)

    def seconds(tokens: int) -> float:
        prompts = [_ids(rng, prompt) for _ in range(batch)]
        start = time.perf_counter()
        llm.generate(prompts, [_params(tokens)] * batch, use_tqdm=False)
        return time.perf_counter() - start

    seconds(steps + 1)
    spent = [seconds(steps + 1) - seconds(1) for _ in range(3)]
    return batch * steps / statistics.median(spent), "tok/s"


def _first_token(llm: paged.LLM, case: str) -> tuple[float, str]:
    rng = random.Random(2)

    def seconds() -> float:
        prompt = _ids(rng, 128)
        start = time.perf_counter()
        llm.generate(prompt, _params(1), use_tqdm=False)
        return time.perf_counter() - start

    seconds()
    return 1e3 * statistics.median(seconds() for _ in range(20)), "ms"


def _prompt_rate(llm: paged.LLM, case: str) -> tuple[float, str]:
    count, length = (64, 512) if "512" in case else (4, 16384)
    rng = random.Random(3)

    def seconds() -> float:
        prompts = [_ids(rng, length) for _ in range(count)]
        start = time.perf_counter()
        llm.generate(prompts, [_params(1)] * count, use_tqdm=False)
        return time.perf_counter() - start

    seconds()
    return count * length / statistics.median(seconds() for _ in range(3)), "tok/s"


def _nano256(llm: paged.LLM, case: str) -> tuple[float, str]:
    rng = random.Random(0)
    prompts, params = [], []
    for _ in range(256):
        prompts.append(_ids(rng, rng.randint(100, 1024)))
        params.append(_params(rng.randint(100, 1024)))

    def seconds() -> float:
        start = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - start

    seconds()
    return sum(p.max_tokens or 0 for p in params) / seconds(), "tok/s"


_RUNS: Mapping[str, Callable[[paged.LLM, str], tuple[float, str]]] = MappingProxyType(
    {"batch": _decode_rate, "first": _first_token, "prompts": _prompt_rate, "nano256": _nano256}
)

# SPDX-License-Identifier: Apache-2.0
"""Engines with a small pool and tiers below it, counted in blocks, for tests of what moves between them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import paged
from backends import open_llm

GREEDY = paged.SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
POOL = 24  # blocks of 16 tokens


def tiered(
    folder: Path, device: str, host_blocks: int = 200, pool: int = POOL, disk_blocks: int = 0, **options: Any
) -> paged.LLM:
    with open_llm(folder, device, block_size=16) as llm:
        block = llm._bytes_per_block
    return open_llm(
        folder, device, block_size=16, kv_cache_bytes=pool * block, host_cache=host_blocks * block,
        disk_cache=disk_blocks * block, max_model_len=180, **options,
    )  # fmt: skip


def ids(seed: int, count: int) -> list[int]:
    return random.Random(seed).choices(range(3, 300), k=count)

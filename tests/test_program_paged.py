# SPDX-License-Identifier: Apache-2.0
"""However a sequence is cut into steps, wherever its blocks lie and whoever runs beside it: the same logits."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from paged.model_config import ModelConfig
from paged.models import record
from paged.program.passes import fuse
from paged.torch_backend import StepBatch, TorchExecutor
from tiny_models import tiny_model

BLOCK_SIZE = 4
NUM_BLOCKS = 40


class Sequence:
    """Tokens, the scattered blocks they go to, and the logits collected so far."""

    def __init__(self, token_ids: list[int], blocks: list[int]) -> None:
        self.token_ids = token_ids
        self.blocks = blocks
        self.num_computed_tokens = 0
        self.logits: list[torch.Tensor] = []


def make_batch(scheduled: list[tuple[Sequence, int]]) -> StepBatch:
    """Each sequence runs its next so many tokens; logits of all of them are wanted."""
    positions = [s.num_computed_tokens + i for s, count in scheduled for i in range(count)]
    owners = [s for s, count in scheduled for _ in range(count)]
    slots = [s.blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for s, p in zip(owners, positions, strict=True)]
    width = max(len(s.blocks) for s, _ in scheduled)
    arrays = (
        [s.token_ids[p] for s, p in zip(owners, positions, strict=True)],
        positions,
        slots,
        np.cumsum([0, *(count for _, count in scheduled)]),
        [s.num_computed_tokens + count for s, count in scheduled],
        [s.blocks + [-1] * (width - len(s.blocks)) for s, _ in scheduled],
        range(len(positions)),
    )
    return StepBatch(*(np.asarray(array, dtype=np.int32) for array in arrays))


def run_step(executor: TorchExecutor, scheduled: list[tuple[Sequence, int]]) -> None:
    logits = executor.run(make_batch(scheduled))
    for (sequence, count), rows in zip(scheduled, logits.split([count for _, count in scheduled]), strict=True):
        sequence.num_computed_tokens += count
        sequence.logits.append(rows)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2-window", "qwen3", "gemma3"])
@pytest.mark.parametrize("seed", range(3))
def test_ragged_steps_equal_dense_forward(name: str, seed: int) -> None:
    rng = random.Random(seed)
    tiny = tiny_model(name)
    program = fuse(record(ModelConfig.from_hf(tiny.config), "float32"))
    executor = TorchExecutor(program, tiny.weights, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE)
    free = rng.sample(range(NUM_BLOCKS), k=NUM_BLOCKS)
    sequences = []
    for _ in range(4):
        token_ids = rng.choices(range(program.vocab_size), k=rng.randint(1, 36))
        sequences.append(Sequence(token_ids, [free.pop() for _ in range(-(-len(token_ids) // BLOCK_SIZE))]))
    while unfinished := [s for s in sequences if s.num_computed_tokens < len(s.token_ids)]:
        running = rng.sample(unfinished, k=rng.randint(1, len(unfinished)))
        longest = rng.choice([1, 5, 40])  # decode, chunked prefill, whole prefill
        left = [len(s.token_ids) - s.num_computed_tokens for s in running]
        run_step(executor, [(s, rng.randint(1, min(most, longest))) for s, most in zip(running, left, strict=True)])
    for sequence in sequences:
        logits = torch.cat(sequence.logits)
        torch.testing.assert_close(logits, tiny.logits(sequence.token_ids), rtol=0.0, atol=2e-5)


def test_copied_blocks_serve_a_fork() -> None:
    tiny = tiny_model("llama")
    program = fuse(record(ModelConfig.from_hf(tiny.config), "float32"))
    executor = TorchExecutor(program, tiny.weights, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE)
    parent = Sequence([5, 6, 7, 8, 9, 10, 11], [3, 9])
    run_step(executor, [(parent, 6)])
    child = Sequence([5, 6, 7, 8, 9, 10, 42], [3, 20])  # shares the full block, owns a copy of the partial one
    child.num_computed_tokens = 6
    executor.copy_blocks([(9, 20)])
    run_step(executor, [(child, 1), (parent, 1)])
    torch.testing.assert_close(parent.logits[-1][0], tiny.logits(parent.token_ids)[-1], rtol=0.0, atol=2e-5)
    torch.testing.assert_close(child.logits[-1][0], tiny.logits(child.token_ids)[-1], rtol=0.0, atol=2e-5)


def test_a_step_in_mid_prefill_gives_no_logits() -> None:
    tiny = tiny_model("gemma3")
    program = fuse(record(ModelConfig.from_hf(tiny.config), "float32"))
    executor = TorchExecutor(program, tiny.weights, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE)
    batch = make_batch([(Sequence([1, 2, 3], [0]), 3)])
    empty = np.zeros(0, dtype=np.int32)
    logits = executor.run(StepBatch(*(getattr(batch, f) for f in StepBatch.__slots__[:-1]), logits_rows=empty))
    assert logits.shape == (0, program.vocab_size)
    assert executor.kv_cache.elements[:, :, :3].any()


def test_limits_are_checked() -> None:
    tiny = tiny_model("llama")
    program = record(ModelConfig.from_hf(tiny.config), "float32")
    executor = TorchExecutor(program, tiny.weights, num_blocks=2, block_size=4)
    with pytest.raises(ValueError, match="position 8 is beyond the 8"):
        executor.forward(range(9))
    with pytest.raises(ValueError, match="slot 12 is beyond 2 blocks of 4"):
        executor.run(make_batch([(Sequence([1], [3]), 1)]))
    with pytest.raises(ValueError, match="at least one token"):
        executor.forward([])

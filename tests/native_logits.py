# SPDX-License-Identifier: Apache-2.0
"""Logits of every position of one prompt by the C++ executor, without an engine around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from paged import _C
from paged.loading.checkpoint import Checkpoint, open_checkpoint
from paged.loading.raw_tensor import RawTensor
from paged.model_config import ModelConfig
from paged.models import record
from paged.program.ir import DType, KvCacheDType
from paged.program.native import compile_program
from paged.program.passes import fuse
from paged.program.plan import plan


class Dequantised:
    """A checkpoint's tensors in float32, for `compile_program`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def tensor(self, name: str) -> RawTensor:
        values = self._checkpoint.dense(name)
        return RawTensor(values.reshape(-1).view(np.uint8), "float32", values.shape)


def native_logits(
    path: Path,
    token_ids: list[int],
    *,
    dtype: DType = "float32",
    kv_cache_dtype: KvCacheDType | None = None,
    fused: bool = True,
    chunk: int | None = None,
    dequantised: bool = False,
) -> npt.NDArray[np.float32]:
    """float32 [len(token_ids), vocab_size]; `chunk` tokens a step, all at once by default. `dequantised`: the
    weights of a GGUF file are read as the float32 that they stand for."""
    size = len(token_ids)
    threads = _C.ThreadPool(2)
    with open_checkpoint(path) as checkpoint:
        program = record(ModelConfig.from_hf(checkpoint.config), dtype, kv_cache_dtype)
        program = fuse(program) if fused else program
        arena = plan(program, max_tokens=size, max_logits_rows=size)
        weights = Dequantised(checkpoint) if dequantised else checkpoint
        native = compile_program(program, arena, weights, threads, max_model_len=size)
    executor = _C.ProgramExecutor(
        program=native, max_seq_len=size, num_blocks=-(-size // 4), block_size=4, threads=threads
    )
    block_table = np.random.default_rng(0).permutation(-(-size // 4)).astype(np.int32)
    logits = []
    for start in range(0, size, chunk or size):
        positions = np.arange(start, min(start + (chunk or size), size), dtype=np.int32)
        logits.append(
            executor.run(
                token_ids=np.array(token_ids, np.int32)[positions],
                positions=positions,
                slot_mapping=block_table[positions // 4] * 4 + positions % 4,
                query_start=np.array([0, len(positions)], np.int32),
                seq_lens=positions[-1:] + 1,
                block_tables=block_table[None],
                logits_rows=np.arange(len(positions), dtype=np.int32),
            )
        )
    return np.concatenate(logits)

# SPDX-License-Identifier: Apache-2.0
"""What `paged inspect` prints: what a model consists of, and where the time of a decode step goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from paged import _C
from paged.config import EngineOptions
from paged.devices import blas_folders, check_gpu, describe_gpu
from paged.loading.checkpoint import open_checkpoint
from paged.loading.resolve import resolve
from paged.model_config import ModelConfig
from paged.models import record
from paged.program.ir import DType, KvCacheDType, Program
from paged.program.listing import listing
from paged.program.native import compile_program
from paged.program.passes import fuse
from paged.program.plan import Plan, plan

_CONTEXT = 128  # tokens in the cache while a decode step is timed
_STEPS = 20
_BLOCK_SIZE = 16


@dataclass(frozen=True)
class OpTime:
    """Median time of an op in a decode step on the CPU, and the bytes of the weight matrices that it reads in full."""

    kind: str
    seconds: float
    matrix_bytes: int


@dataclass(frozen=True)
class _Loaded:
    path: Path
    architecture: str
    program: Program
    arena: Plan
    native: _C.Program
    threads: _C.ThreadPool

    def matrix_bytes(self) -> dict[str, int]:
        """Of every matrix as the CPU packs it."""
        matrices = [spec.name for spec in self.program.weights if spec.kind == "matrix"]
        return dict(zip(matrices, self.native.matrix_bytes, strict=True))


def inspect(
    model: str | Path,
    *,
    show_program: bool,
    dtype: DType | Literal["auto"] = "auto",
    kv_cache_dtype: KvCacheDType | Literal["auto"] = "auto",
    num_threads: int | None = None,
    device: str = "cpu",
) -> str:
    """Loads the model and describes it; with `show_program` also every op, its shape, its bytes and its median time in
    a decode step of one sequence with 128 tokens of context. `device`: "cpu" or a GPU. On a GPU the times are those of
    ops one after the other, without the overlap that a step's graph gives them."""
    options = EngineOptions(dtype=dtype, kv_cache_dtype=kv_cache_dtype, num_threads=num_threads, device=device)
    if options.gpu is not None:
        check_gpu(options.gpu)
    gpu_index = None if options.gpu is None else options.gpu.index
    loaded = _load(model, options, gpu_index)
    native, program = loaded.native, loaded.program
    kernels = (
        f"{_C.ops.isa()} kernels, {_describe_threads(loaded.threads)}"
        if options.gpu is None
        else describe_gpu(options.gpu)
    )
    summary = (
        f"{loaded.path}\n{loaded.architecture}, {program.kv_cache.num_layers} layers, {native.weight_bytes / 1e6:.1f} "
        f"MB of packed weights, {program.dtype} activations, {kernels}"
    )
    if not show_program:
        return summary
    # A GPU has several under each other, in the activations' dtype.
    weight_bytes = loaded.matrix_bytes() if options.gpu is None else None
    seconds = _decode_seconds(_executor(native, loaded.threads, gpu_index))
    title = f"one decode step, {_CONTEXT} tokens of context (median of {_STEPS})"
    return f"{summary}\n{title}\n\n{listing(program, plan=loaded.arena, seconds=seconds, weight_bytes=weight_bytes)}"


def decode_op_times(
    model: str | Path, *, dtype: DType | Literal["auto"] = "auto", num_threads: int | None = None
) -> list[OpTime]:
    """The ops of a decode step of one sequence with 128 tokens of context on the CPU, each timed on its own."""
    loaded = _load(model, EngineOptions(dtype=dtype, num_threads=num_threads), None)
    seconds = _decode_seconds(_executor(loaded.native, loaded.threads, None))
    packed, weights = loaded.matrix_bytes(), loaded.program.weights
    return [
        OpTime(
            op.kind,
            spent,
            0 if op.kind == "embedding" else sum(packed.get(weights[weight].name, 0) for weight in op.weights),
        )
        for op, spent in zip(loaded.program.ops, seconds, strict=True)
    ]


def _describe_threads(threads: _C.ThreadPool) -> str:
    nodes = "" if threads.num_nodes == 1 else f" on {threads.num_nodes} nodes of memory"
    return f"{threads.num_threads} threads{nodes}"


def _load(model: str | Path, options: EngineOptions, gpu_index: int | None) -> _Loaded:
    path = resolve(model)
    with open_checkpoint(path) as checkpoint:
        config = ModelConfig.from_hf(checkpoint.config)
        dtype = options.resolve_dtype(checkpoint.dtype)
        program = fuse(record(config, dtype, options.resolve_kv_cache_dtype(dtype)))
        threads = _C.ThreadPool(options.resolve_num_threads())
        arena = plan(program, max_tokens=_CONTEXT, max_logits_rows=1)
        native = compile_program(
            program, arena, checkpoint, threads, max_model_len=2 * _CONTEXT, gpu_index=gpu_index
        )  # fmt: skip
    return _Loaded(path, config.architecture, program, arena, native, threads)


def _executor(native: _C.Program, threads: _C.ThreadPool, gpu_index: int | None) -> _C.ProgramExecutor | _C.GpuExecutor:
    num_blocks = 2 * _CONTEXT // _BLOCK_SIZE
    if gpu_index is None:
        return _C.ProgramExecutor(
            program=native, max_seq_len=2 * _CONTEXT, num_blocks=num_blocks, block_size=_BLOCK_SIZE, threads=threads
        )  # fmt: skip
    return _C.GpuExecutor(
        program=native, max_seq_len=2 * _CONTEXT, num_blocks=num_blocks, block_size=_BLOCK_SIZE, max_num_sequences=1,
        device=gpu_index, batch_invariant=False, blas_folders=blas_folders(),
    )  # fmt: skip


def _decode_seconds(executor: _C.ProgramExecutor | _C.GpuExecutor) -> list[float]:
    _run(executor, 0, _CONTEXT)
    samples = []
    for _ in range(_STEPS + 1):
        executor.set_profiling(True)
        _run(executor, _CONTEXT, 1)
        samples.append(executor.op_seconds)
    return [float(second) for second in np.median(np.array(samples[1:]), axis=0)]


def _run(executor: _C.ProgramExecutor | _C.GpuExecutor, position: int, query_len: int) -> None:
    """A step of one sequence whose block table is 0, 1, 2, ..., so that a slot is a position."""
    positions = np.arange(position, position + query_len, dtype=np.int32)
    executor.run(
        token_ids=np.ones(query_len, np.int32), positions=positions, slot_mapping=positions,
        query_start=np.array([0, query_len], np.int32), seq_lens=np.array([position + query_len], np.int32),
        block_tables=np.arange(2 * _CONTEXT // _BLOCK_SIZE, dtype=np.int32)[None],
        logits_rows=np.array([query_len - 1], np.int32),
    )  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""Puts an engine together: checkpoint -> program -> executor -> engine. The one place that knows all the parts."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paged import _C
from paged.config import EngineOptions
from paged.loading.checkpoint import Checkpoint, open_checkpoint
from paged.loading.resolve import resolve
from paged.model_config import ModelConfig
from paged.models import record
from paged.program.ir import ITEMSIZE, DType, Program
from paged.program.native import compile_program
from paged.program.passes import fuse
from paged.program.plan import plan
from paged.text.chat import ChatTemplate, load_chat_template
from paged.text.tokenizer import Tokenizer, load_token_ids, load_tokenizer

if TYPE_CHECKING:
    from paged.torch_backend.engine_model import TorchEngineModel


@dataclass(frozen=True)
class Assembly:
    """What `LLM` keeps."""

    engine: _C.Engine
    tokenizer: Tokenizer | None
    end_token_ids: frozenset[int]
    chat_template: ChatTemplate | None
    max_model_len: int
    description: str


@dataclass(frozen=True)
class Sizes:
    """The engine's limits, after the machine and the model had their say."""

    dtype: DType
    num_threads: int
    max_model_len: int
    num_blocks: int
    kv_cache_bytes: int


def assemble(model: str | Path, options: EngineOptions) -> Assembly:
    """Loads `model` and starts its engine. Raises ValueError with what arrived and what was expected."""
    path = resolve(model)
    with open_checkpoint(path) as checkpoint:
        config = ModelConfig.from_hf(checkpoint.config)
        dtype = options.resolve_dtype(checkpoint.dtype)
        program = fuse(record(config, dtype))
        sizes = resolve_sizes(program, options, dtype)
        threads = _C.ThreadPool(sizes.num_threads)
        executor = make_executor(program, checkpoint, options, sizes, threads)
        tokenizer = load_tokenizer(path, checkpoint)
        chat_template = None if tokenizer is None else load_chat_template(path, checkpoint)
        engine = _C.Engine(
            config=_scheduler_config(options, sizes),
            executor=executor,
            threads=threads,
            token_table=None if tokenizer is None else _C.TokenTable(*tokenizer.token_table()),
        )
        end_token_ids = load_token_ids(path, checkpoint, program.vocab_size).ends
        description = _describe(path, config, options, sizes)
    return Assembly(engine, tokenizer, end_token_ids, chat_template, sizes.max_model_len, description)


def resolve_sizes(program: Program, options: EngineOptions, dtype: DType) -> Sizes:
    kv_cache = program.kv_cache
    max_model_len = options.resolve_max_model_len(program.max_positions)
    bytes_per_token = 2 * kv_cache.num_layers * kv_cache.num_kv_heads * kv_cache.head_dim * ITEMSIZE[dtype]
    num_blocks = options.resolve_num_blocks(bytes_per_token, max_model_len)
    kv_cache_bytes = num_blocks * options.block_size * bytes_per_token
    return Sizes(dtype, options.resolve_num_threads(), max_model_len, num_blocks, kv_cache_bytes)


def make_executor(
    program: Program, checkpoint: Checkpoint, options: EngineOptions, sizes: Sizes, threads: _C.ThreadPool
) -> _C.ProgramExecutor | TorchEngineModel:
    """The CPU executor, or the torch interpreter for device="torch..."."""
    if options.device != "cpu":
        return _torch_model(program, checkpoint, options, sizes)
    arena = plan(
        program, max_tokens=options.max_num_batched_tokens, max_logits_rows=options.max_num_sequences
    )  # fmt: skip
    native = compile_program(program, arena, checkpoint, threads, max_model_len=sizes.max_model_len)
    return _C.ProgramExecutor(
        program=native, max_seq_len=sizes.max_model_len, num_blocks=sizes.num_blocks, block_size=options.block_size,
        threads=threads,
    )  # fmt: skip


def _torch_model(program: Program, checkpoint: Checkpoint, options: EngineOptions, sizes: Sizes) -> TorchEngineModel:
    if importlib.util.find_spec("torch") is None:
        raise ImportError(f"device={options.device!r} needs torch: pip install 'paged[torch]'")
    from paged.torch_backend.engine_model import TorchEngineModel
    from paged.torch_backend.interpreter import TorchExecutor

    weights = {spec.name: checkpoint.dense(spec.name) for spec in program.weights if spec.rope is None}
    device = options.device.removeprefix("torch").removeprefix(":") or "cpu"
    executor = TorchExecutor(
        program, weights, device=device, num_blocks=sizes.num_blocks, block_size=options.block_size
    )  # fmt: skip
    return TorchEngineModel(executor)


def _scheduler_config(options: EngineOptions, sizes: Sizes) -> _C.SchedulerConfig:
    config = _C.SchedulerConfig()
    config.num_blocks = sizes.num_blocks
    config.block_size = options.block_size
    config.max_num_sequences = options.max_num_sequences
    config.max_num_batched_tokens = options.max_num_batched_tokens
    config.max_model_len = sizes.max_model_len
    config.enable_prefix_caching = options.enable_prefix_caching
    return config


def _describe(path: Path, config: ModelConfig, options: EngineOptions, sizes: Sizes) -> str:
    return (
        f"{str(path)!r}, {config.architecture}, dtype={sizes.dtype}, device={options.device!r}, "
        f"isa={_C.ops.isa()}, num_threads={sizes.num_threads}, max_model_len={sizes.max_model_len}, "
        f"kv_cache={_megabytes(sizes.kv_cache_bytes)} ({sizes.num_blocks} blocks x {options.block_size} tokens), "
        f"max_num_sequences={options.max_num_sequences}, max_num_batched_tokens={options.max_num_batched_tokens}, "
        f"enable_prefix_caching={options.enable_prefix_caching}"
    )


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"

# SPDX-License-Identifier: Apache-2.0
"""Puts an engine together: checkpoint -> program -> executor -> engine. The one place that knows all the parts."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paged import _C
from paged.config import EngineOptions, StepSizes
from paged.devices import (
    blas_folders,
    check_gpu,
    check_weights_fit,
    default_kv_cache_bytes,
    describe_gpu,
    out_of_memory_advice,
)
from paged.loading.checkpoint import Checkpoint, open_checkpoint
from paged.loading.fingerprint import fingerprint
from paged.loading.resolve import resolve
from paged.machine import available_memory
from paged.meanwhile import Meanwhile
from paged.model_config import ModelConfig
from paged.models import record
from paged.policy import PolicyChoice, PolicyThread, choose_policy
from paged.program.ir import DType, KvCacheDType, Program
from paged.program.native import compile_program, stacked_weight_bytes
from paged.program.passes import fuse
from paged.program.plan import plan
from paged.sampling import SamplingParams, default_sampling_params
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
    default_sampling_params: SamplingParams
    bytes_per_block: int
    policy: PolicyChoice
    block_size: int
    cache_identity: dict[str, str]  # whose keys and values are of use to each other


@dataclass(frozen=True)
class Sizes:
    """The engine's limits, after the machine and the model had their say."""

    dtype: DType
    kv_cache_dtype: KvCacheDType
    num_threads: int
    max_model_len: int
    step: StepSizes
    num_blocks: int
    kv_cache_bytes: int


Executor = _C.ProgramExecutor | _C.GpuExecutor


def assemble(model: str | Path, options: EngineOptions) -> Assembly:
    """Loads `model` and starts its engine. Raises ValueError with what arrived and what was expected."""
    if options.gpu is not None:
        check_gpu(options.gpu)
    path = resolve(model)
    with _open(path, options) as checkpoint:
        config = ModelConfig.from_hf(checkpoint.config)
        dtype = options.resolve_dtype(checkpoint.dtype)
        kv_cache_dtype = options.resolve_kv_cache_dtype(dtype)
        program = fuse(record(config, dtype, kv_cache_dtype))
        threads = _C.ThreadPool(options.resolve_num_threads())
        weights = checkpoint
        if options.quantize is not None:
            from paged.quantise import QuantisedCheckpoint

            weights = QuantisedCheckpoint(checkpoint, options.quantize, threads, cache=options.quantize_cache)
        # Weights are packed without the GIL.
        with Meanwhile(load_tokenizer, path, checkpoint) as loading, Meanwhile(fingerprint, checkpoint) as identifying:
            executor, sizes = make_executor(program, weights, options, threads)
        tokenizer = loading.result()
        chat_template = None if tokenizer is None else load_chat_template(path, checkpoint)
        policy = choose_policy(options.policy)
        desk = None if policy.custom is None else _C.PolicyDesk(policy.custom.fallback, policy.custom.patience)
        engine = _C.Engine(
            config=_scheduler_config(options, sizes, policy),
            executor=executor,
            threads=threads,
            token_table=None if tokenizer is None else _C.TokenTable(*tokenizer.token_table()),
            policy_desk=desk,
            disk_folder=options.disk_folder,
        )
        if policy.custom is not None and desk is not None:
            PolicyThread(policy.custom, desk)
        end_token_ids = load_token_ids(path, checkpoint, program.vocab_size).ends
        description = _describe(path, config, options, sizes)
        generation = checkpoint.generation_config if options.generation_config == "auto" else {}
        defaults = default_sampling_params(generation)
        identity = {
            "weights": identifying.result(), "dtype": dtype, "kv_cache_dtype": kv_cache_dtype,
            "batch_invariant": str(options.batch_invariant),
        }  # fmt: skip
        if options.quantize is not None:
            identity["quantize"] = options.quantize
    return Assembly(
        engine, tokenizer, end_token_ids, chat_template, sizes.max_model_len, description, defaults,
        sizes.kv_cache_bytes // sizes.num_blocks, policy, sizes.step.block_size, identity,
    )  # fmt: skip


def _open(path: Path, options: EngineOptions) -> Checkpoint:
    if options.load_format != "dummy":
        return open_checkpoint(path)
    from paged.dummy import open_dummy

    return open_dummy(path)


def resolve_sizes(program: Program, options: EngineOptions, default_kv_bytes: int | None = None) -> Sizes:
    """`default_kv_bytes`: what the KV pool may take if the caller gave no size; None: a share of the host's memory."""
    step, bytes_per_token = options.resolve_step_sizes(), program.kv_bytes_per_token
    max_model_len = options.resolve_max_model_len(program.max_positions)
    num_blocks = options.resolve_num_blocks(bytes_per_token, max_model_len, default_kv_bytes)
    kv_cache_bytes = num_blocks * step.block_size * bytes_per_token
    num_threads = options.resolve_num_threads()
    return Sizes(program.dtype, program.kv_cache_dtype, num_threads, max_model_len, step, num_blocks, kv_cache_bytes)


def make_executor(
    program: Program, checkpoint: Checkpoint, options: EngineOptions, threads: _C.ThreadPool
) -> tuple[Executor | TorchEngineModel, Sizes]:
    """The executor of the device: the CPU's, a GPU's, or the torch interpreter for device="torch..."."""
    step = options.resolve_step_sizes()
    if options.gpu is not None:
        return _gpu_executor(program, checkpoint, options, threads)
    sizes = resolve_sizes(program, options)
    if options.device != "cpu":
        return _torch_model(program, checkpoint, options, sizes), sizes
    arena = plan(program, max_tokens=step.max_num_batched_tokens, max_logits_rows=step.max_num_sequences)
    native = compile_program(program, arena, checkpoint, threads, max_model_len=sizes.max_model_len)
    try:
        executor = _C.ProgramExecutor(
            program=native, max_seq_len=sizes.max_model_len, num_blocks=sizes.num_blocks, block_size=step.block_size,
            threads=threads,
        )  # fmt: skip
    except MemoryError as error:
        raise MemoryError(
            f"no memory for a KV cache of {sizes.kv_cache_bytes} bytes, with {available_memory()} available; "
            "set a smaller kv_cache_bytes"
        ) from error
    return executor, sizes


def _gpu_executor(
    program: Program, checkpoint: Checkpoint, options: EngineOptions, threads: _C.ThreadPool
) -> tuple[_C.GpuExecutor, Sizes]:
    """Uploads the weights first, so that what is free then can be measured and given to the KV cache."""
    device, step = options.gpu, options.resolve_step_sizes()
    assert device is not None
    max_model_len = options.resolve_max_model_len(program.max_positions)
    arena = plan(program, max_tokens=step.max_num_batched_tokens, max_logits_rows=step.max_num_sequences)
    check_weights_fit(device, stacked_weight_bytes(program))
    native = compile_program(
        program, arena, checkpoint, threads, max_model_len=max_model_len, gpu_index=device.index
    )  # fmt: skip
    kv_bytes = options.kv_cache_bytes or default_kv_cache_bytes(
        device, arena_bytes=arena.arena_bytes, utilization=options.gpu_memory_utilization
    )
    sizes = resolve_sizes(program, options, kv_bytes)
    try:
        executor = _C.GpuExecutor(
            program=native, max_seq_len=sizes.max_model_len, num_blocks=sizes.num_blocks, block_size=step.block_size,
            max_num_sequences=step.max_num_sequences, device=device.index, batch_invariant=options.batch_invariant,
            blas_folders=blas_folders(),
        )  # fmt: skip
    except _C.DeviceError as error:
        raise _C.DeviceError(f"{error}; {out_of_memory_advice(device, sizes.kv_cache_bytes)}") from error
    return executor, sizes


def _torch_model(program: Program, checkpoint: Checkpoint, options: EngineOptions, sizes: Sizes) -> TorchEngineModel:
    if importlib.util.find_spec("torch") is None:
        raise ImportError(f"device={options.device!r} needs torch: pip install 'paged[torch]'")
    from paged.torch_backend.engine_model import TorchEngineModel
    from paged.torch_backend.interpreter import TorchExecutor

    weights = {spec.name: checkpoint.dense(spec.name) for spec in program.weights if spec.rope is None}
    device = options.device.removeprefix("torch").removeprefix(":") or "cpu"
    executor = TorchExecutor(
        program, weights, device=device, num_blocks=sizes.num_blocks, block_size=sizes.step.block_size
    )  # fmt: skip
    return TorchEngineModel(executor)


def _scheduler_config(options: EngineOptions, sizes: Sizes, policy: PolicyChoice) -> _C.SchedulerConfig:
    config = _C.SchedulerConfig()
    config.set_policy(policy.name, policy.ttl)
    config.num_blocks = sizes.num_blocks
    config.block_size = sizes.step.block_size
    config.max_num_sequences = sizes.step.max_num_sequences
    config.max_num_batched_tokens = sizes.step.max_num_batched_tokens
    config.max_model_len = sizes.max_model_len
    config.num_host_blocks = _tier_blocks("host_cache", options.host_cache, sizes)
    config.num_disk_blocks = _tier_blocks("disk_cache", options.disk_cache, sizes)
    config.enable_prefix_caching = options.enable_prefix_caching
    # A GPU computes generated tokens with other kernels than prompts, so their keys and values differ in the last bits.
    config.cache_generated_tokens = options.gpu is None or not options.batch_invariant
    return config


def _tier_blocks(name: str, num_bytes: int, sizes: Sizes) -> int:
    bytes_per_block = sizes.kv_cache_bytes // sizes.num_blocks
    num_blocks = num_bytes // bytes_per_block
    if num_bytes and not 1 <= num_blocks < 2**31:
        raise ValueError(
            f"{name}={num_bytes} holds {num_blocks} blocks of {bytes_per_block} bytes; at least 1 and at "
            f"most {2**31 - 1} are possible"
        )
    return num_blocks


def _describe(path: Path, config: ModelConfig, options: EngineOptions, sizes: Sizes) -> str:
    kernels = f"device={options.device!r}, isa={_C.ops.isa()}"
    if options.gpu is not None:
        kernels = f"device={describe_gpu(options.gpu)}, batch_invariant={options.batch_invariant}"
    return (
        f"{str(path)!r}, {config.architecture}, dtype={sizes.dtype}, {kernels}, num_threads={sizes.num_threads}, "
        f"max_model_len={sizes.max_model_len}, kv_cache={_megabytes(sizes.kv_cache_bytes)} of {sizes.kv_cache_dtype} "
        f"({sizes.num_blocks} blocks x {sizes.step.block_size} tokens), "
        f"max_num_sequences={sizes.step.max_num_sequences}, "
        f"max_num_batched_tokens={sizes.step.max_num_batched_tokens}, "
        f"enable_prefix_caching={options.enable_prefix_caching}"
    )


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"

# SPDX-License-Identifier: Apache-2.0
"""The options of an engine, checked, and the sizes that follow from them and from the machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from paged.checks import shown
from paged.devices import GpuDevice, parse_gpu
from paged.machine import available_memory, num_physical_cores
from paged.policy import Policy, choose_policy
from paged.program.ir import ITEMSIZE, DType, KvCacheDType

LoadFormat = Literal["auto", "dummy"]
GenerationConfig = Literal["auto", "none"]
Quantize = Literal["int8", "int4"]

_MIB = 1 << 20
# Without a given size the KV pool takes at most this share of the memory that is free when the engine is made, and at
# most this much: enough for a chat or a few dozen short requests, harmless on a laptop.
_DEFAULT_KV_SHARE = 0.25
_DEFAULT_KV_BYTES = 4096 * _MIB


@dataclass(frozen=True)
class StepSizes:
    """What one step may hold, and how the cache is cut."""

    max_num_sequences: int
    max_num_batched_tokens: int
    block_size: int


# What a CPU answers in reasonable time, and what it takes to keep a GPU busy.
DEFAULT_STEP_SIZES: Mapping[Literal["cpu", "gpu"], StepSizes] = MappingProxyType(
    {"cpu": StepSizes(64, 512, 16), "gpu": StepSizes(256, 8192, 64)}
)


@dataclass(frozen=True)
class EngineOptions:
    """What the caller of `LLM(...)` chose; see there. Raises TypeError or ValueError naming the option."""

    dtype: DType | Literal["auto"] = "auto"
    kv_cache_dtype: KvCacheDType | Literal["auto"] = "auto"
    device: str = "cpu"
    num_threads: int | None = None
    kv_cache_bytes: int | None = None
    gpu_memory_utilization: float = 0.85
    max_model_len: int | None = None
    max_num_sequences: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    host_cache: int = 0
    disk_cache: int = 0
    disk_cache_path: str | Path | None = None
    enable_prefix_caching: bool = True
    batch_invariant: bool = False
    quantize: Quantize | None = None
    quantize_cache: bool = False
    load_format: LoadFormat = "auto"
    generation_config: GenerationConfig = "auto"
    seed: int = 0
    policy: str | Policy = "hazard"

    def __post_init__(self) -> None:
        if self.dtype != "auto" and self.dtype not in ITEMSIZE:
            raise ValueError(f"dtype must be 'auto', 'float32', 'bfloat16' or 'float16', got {shown(self.dtype)}")
        if self.kv_cache_dtype not in ("auto", "int8", *ITEMSIZE):
            raise ValueError(
                "kv_cache_dtype must be 'auto', 'float32', 'bfloat16', 'float16' or 'int8', got "
                f"{shown(self.kv_cache_dtype)}"
            )
        if self.generation_config not in ("auto", "none"):
            raise ValueError(f"generation_config must be 'auto' or 'none', got {shown(self.generation_config)}")
        if self.load_format not in ("auto", "dummy"):
            raise ValueError(f"load_format must be 'auto' or 'dummy', got {shown(self.load_format)}")
        _check_device(self.device)
        if self.gpu is not None and self.kv_cache_dtype not in ("auto", self.dtype):
            raise ValueError(
                f"kv_cache_dtype={self.kv_cache_dtype!r} on device={self.device!r}: a GPU keeps keys and values in the "
                "dtype of the activations; leave kv_cache_dtype='auto', or use device='cpu'"
            )
        _check_count("num_threads", self.num_threads, 1, 1024)
        _check_count("kv_cache_bytes", self.kv_cache_bytes, 1, 1 << 50)
        _check_share("gpu_memory_utilization", self.gpu_memory_utilization)
        _check_count("max_model_len", self.max_model_len, 2, 1 << 30)
        _check_count("max_num_sequences", self.max_num_sequences, 1, 65536)
        _check_count("max_num_batched_tokens", self.max_num_batched_tokens, 1, 1 << 20)
        _check_count("block_size", self.block_size, 1, 256)
        if self.block_size is not None and self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size must be a power of two from 1 to 256, got {self.block_size}")
        self._check_tiers()
        _check_flag("enable_prefix_caching", self.enable_prefix_caching)
        _check_flag("batch_invariant", self.batch_invariant)
        if self.quantize not in (None, "int8", "int4"):
            raise ValueError(f"quantize must be 'int8', 'int4' or None, got {shown(self.quantize)}")
        _check_flag("quantize_cache", self.quantize_cache)
        if self.quantize_cache and (self.quantize is None or self.load_format == "dummy"):
            raise ValueError("quantize_cache keeps what quantize makes of weights: it takes quantize='int8' or 'int4'")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"seed must be an integer, got {shown(self.seed)}")
        choose_policy(self.policy)
        step = self.resolve_step_sizes()
        if step.max_num_batched_tokens < step.max_num_sequences:
            raise ValueError(
                f"max_num_batched_tokens ({step.max_num_batched_tokens}) must be at least max_num_sequences "
                f"({step.max_num_sequences}): every running sequence gets a token per step"
            )

    def _check_tiers(self) -> None:
        for name, size in (("host_cache", self.host_cache), ("disk_cache", self.disk_cache)):
            _check_count(name, size, 0, 1 << 50)
            if size and not self.enable_prefix_caching:
                raise ValueError(f"{name} keeps cached blocks: it takes enable_prefix_caching=True")
            if size and self.device.startswith("torch"):
                tier = name.removesuffix("_cache")
                raise ValueError(f"device={self.device!r} has no {tier} tier: leave {name}=0, or use 'cpu' or a GPU")
        if self.disk_cache_path is None:
            return
        if not self.disk_cache:
            raise ValueError("disk_cache_path is where disk_cache lies: set disk_cache to the bytes that it may take")
        if not Path(self.disk_cache_path).is_dir():
            raise ValueError(f"disk_cache_path must be a folder, got {shown(self.disk_cache_path)}")

    @property
    def disk_folder(self) -> str:
        """Of the disk's tier."""
        return str(self.disk_cache_path or os.environ.get("TMPDIR") or "/var/tmp")

    @property
    def gpu(self) -> GpuDevice | None:
        """The GPU that was asked for, if it is one."""
        return parse_gpu(self.device)

    def resolve_step_sizes(self) -> StepSizes:
        """What was asked for, else what suits the kind of device."""
        default = DEFAULT_STEP_SIZES["gpu" if self.gpu else "cpu"]
        return StepSizes(
            self.max_num_sequences or default.max_num_sequences,
            self.max_num_batched_tokens or default.max_num_batched_tokens,
            self.block_size or default.block_size,
        )

    def resolve_dtype(self, checkpoint_dtype: DType) -> DType:
        """The dtype of activations: what was asked for, else the checkpoint's own."""
        return checkpoint_dtype if self.dtype == "auto" else self.dtype

    def resolve_kv_cache_dtype(self, dtype: DType) -> KvCacheDType:
        """The dtype of keys and values where activations are `dtype`."""
        return dtype if self.kv_cache_dtype == "auto" else self.kv_cache_dtype

    def resolve_num_threads(self) -> int:
        return self.num_threads or num_physical_cores()

    def resolve_max_model_len(self, max_positions: int) -> int:
        if self.max_model_len is None:
            return max_positions
        if self.max_model_len > max_positions:
            raise ValueError(f"max_model_len is {self.max_model_len}, but this model has {max_positions} positions")
        return self.max_model_len

    def resolve_num_blocks(self, bytes_per_token: int, max_model_len: int, default_bytes: int | None = None) -> int:
        """Blocks of the KV pool: from kv_cache_bytes, else as many as can be used within `default_bytes` (None: within
        the bounds for the host's memory)."""
        step = self.resolve_step_sizes()
        bytes_per_block = bytes_per_token * step.block_size
        blocks_per_sequence = -(-max_model_len // step.block_size)
        if self.kv_cache_bytes is None:
            if default_bytes is None:
                default_bytes = min(_DEFAULT_KV_BYTES, int(available_memory() * _DEFAULT_KV_SHARE))
            return max(1, min(default_bytes // bytes_per_block, step.max_num_sequences * blocks_per_sequence))
        num_blocks = self.kv_cache_bytes // bytes_per_block
        if num_blocks < 1:
            raise ValueError(
                f"kv_cache_bytes={self.kv_cache_bytes} holds no block: one takes {bytes_per_block} bytes "
                f"({step.block_size} tokens of {bytes_per_token} bytes)"
            )
        if num_blocks * step.block_size >= 2**31:
            raise ValueError(
                f"kv_cache_bytes={self.kv_cache_bytes} holds {num_blocks * step.block_size} tokens of "
                f"{bytes_per_token} bytes; at most {2**31 - 1} are possible"
            )
        return num_blocks


def _check_device(device: object) -> None:
    if isinstance(device, str) and (
        device in ("cpu", "torch") or device.startswith("torch:") or parse_gpu(device) is not None
    ):
        return
    raise ValueError(
        "device must be 'cpu', 'cuda' or 'cuda:<index>', 'hip' or 'hip:<index>', or 'torch' or 'torch:<device>' for "
        f"the torch backend, got {shown(device)}"
    )


def _check_count(name: str, value: int | None, low: int, high: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {shown(value)}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {shown(value)}")


def _check_share(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name} must be in (0, 1], got {shown(value)}")


def _check_flag(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")

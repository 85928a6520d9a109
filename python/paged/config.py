# SPDX-License-Identifier: Apache-2.0
"""The options of an engine, checked, and the sizes that follow from them and from the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paged.machine import available_memory, num_physical_cores
from paged.program.ir import ITEMSIZE, DType

_MIB = 1 << 20
# Without a given size the KV pool takes at most this share of the memory that is free when the engine is made, and at
# most this much: enough for a chat or a few dozen short requests, harmless on a laptop.
_DEFAULT_KV_SHARE = 0.25
_DEFAULT_KV_BYTES = 4096 * _MIB


@dataclass(frozen=True)
class EngineOptions:
    """What the caller of `LLM(...)` chose; see there. Raises TypeError or ValueError naming the option."""

    dtype: DType | Literal["auto"] = "auto"
    device: str = "cpu"
    num_threads: int | None = None
    kv_cache_bytes: int | None = None
    max_model_len: int | None = None
    max_num_sequences: int = 64
    max_num_batched_tokens: int = 512
    block_size: int = 16
    enable_prefix_caching: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dtype != "auto" and self.dtype not in ITEMSIZE:
            raise ValueError(f"dtype must be 'auto', 'float32', 'bfloat16' or 'float16', got {self.dtype!r}")
        if not isinstance(self.device, str) or not (
            self.device in ("cpu", "torch") or self.device.startswith("torch:")
        ):
            raise ValueError(
                f"device must be 'cpu', or 'torch' or 'torch:<device>' for the torch backend, got {self.device!r}; "
                "this build of paged has no GPU kernels of its own"
            )
        _check_count("num_threads", self.num_threads, 1, 1024)
        _check_count("kv_cache_bytes", self.kv_cache_bytes, 1, 1 << 50)
        _check_count("max_model_len", self.max_model_len, 2, 1 << 30)
        _check_count("max_num_sequences", self.max_num_sequences, 1, 65536)
        _check_count("max_num_batched_tokens", self.max_num_batched_tokens, 1, 1 << 20)
        _check_count("block_size", self.block_size, 1, 256)
        if self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size must be a power of two from 1 to 256, got {self.block_size}")
        if not isinstance(self.enable_prefix_caching, bool):
            raise TypeError(f"enable_prefix_caching must be True or False, got {self.enable_prefix_caching!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"seed must be an integer, got {self.seed!r}")
        if self.max_num_batched_tokens < self.max_num_sequences:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_sequences "
                f"({self.max_num_sequences}): every running sequence gets a token per step"
            )

    def resolve_dtype(self, checkpoint_dtype: DType) -> DType:
        """The dtype of activations and KV cache: what was asked for, else the checkpoint's own."""
        return checkpoint_dtype if self.dtype == "auto" else self.dtype

    def resolve_num_threads(self) -> int:
        return self.num_threads or num_physical_cores()

    def resolve_max_model_len(self, max_positions: int) -> int:
        if self.max_model_len is None:
            return max_positions
        if self.max_model_len > max_positions:
            raise ValueError(f"max_model_len is {self.max_model_len}, but this model has {max_positions} positions")
        return self.max_model_len

    def resolve_num_blocks(self, bytes_per_token: int, max_model_len: int) -> int:
        """Blocks of the KV pool: from kv_cache_bytes, else as many as can be used, within the default bounds."""
        bytes_per_block = bytes_per_token * self.block_size
        blocks_per_sequence = -(-max_model_len // self.block_size)
        if self.kv_cache_bytes is None:
            bound = min(_DEFAULT_KV_BYTES, int(available_memory() * _DEFAULT_KV_SHARE))
            return max(1, min(bound // bytes_per_block, self.max_num_sequences * blocks_per_sequence))
        num_blocks = self.kv_cache_bytes // bytes_per_block
        if num_blocks < 1:
            raise ValueError(
                f"kv_cache_bytes={self.kv_cache_bytes} holds no block: one takes {bytes_per_block} bytes "
                f"({self.block_size} tokens of {bytes_per_token} bytes)"
            )
        return num_blocks


def _check_count(name: str, value: int | None, low: int, high: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {value}")

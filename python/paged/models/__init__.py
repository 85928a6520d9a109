# SPDX-License-Identifier: Apache-2.0
"""One file per family: `write(b, config)` records the model's program. `ARCHITECTURES` is the registry, read only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from paged.model_config import ModelConfig
from paged.models import gemma3, llama, qwen2, qwen3
from paged.program.builder import Builder
from paged.program.ir import DType, KvCacheDType, KvCacheSpec, Program, Value

ARCHITECTURES: Mapping[str, Callable[[Builder, ModelConfig], Value]] = MappingProxyType(
    {
        "LlamaForCausalLM": llama.write,
        "MistralForCausalLM": llama.write,
        "Qwen2ForCausalLM": qwen2.write,
        "Qwen3ForCausalLM": qwen3.write,
        "Gemma3ForCausalLM": gemma3.write,
    }
)


def record(config: ModelConfig, dtype: DType, kv_cache_dtype: KvCacheDType | None = None) -> Program:
    """The model's program as its file writes it, unfused; `paged.program.passes.fuse` makes it fast. `dtype` is that of
    activations, and of keys and values if `kv_cache_dtype` is None. Raises ValueError for an unknown architecture,
    listing the known ones."""
    write = ARCHITECTURES.get(config.architecture)
    if write is None:
        raise ValueError(f"unknown architecture {config.architecture!r}; known: {', '.join(ARCHITECTURES)}")
    cache = KvCacheSpec(config.num_layers, config.num_kv_heads, config.head_dim, kv_cache_dtype)
    b = Builder(cache, vocab_size=config.vocab_size, max_positions=config.max_positions, dtype=dtype)
    return b.finish(write(b, config))

# SPDX-License-Identifier: Apache-2.0
"""Qwen2 and Qwen2.5 (Qwen team 2024): Llama's layer, with biases on q, k and v alone; the upper layers may attend
through a sliding window. transformers: models/qwen2/modeling_qwen2.py."""

from __future__ import annotations

from paged.model_config import ModelConfig
from paged.models.blocks import pre_norm_decoder, project_qkv, rotary_attention
from paged.program.builder import Builder
from paged.program.ir import Value


def write(b: Builder, config: ModelConfig) -> Value:
    """Logits [logits rows, vocab_size]."""
    return pre_norm_decoder(b, config, attention)


def attention(b: Builder, config: ModelConfig, x: Value, module: str, layer: int) -> Value:
    """[T, hidden_size]"""
    q, k, v = project_qkv(b, config, x, module, bias=True)
    attended = rotary_attention(b, config, q, k, v, layer)
    return b.linear(attended, f"{module}.o_proj", config.hidden_size)

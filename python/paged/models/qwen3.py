# SPDX-License-Identifier: Apache-2.0
"""Qwen3 (Qwen team 2025), dense: Llama's layer, with RMSNorm on each head of q and k before the rotation.
transformers: models/qwen3/modeling_qwen3.py."""

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
    q, k, v = project_qkv(b, config, x, module, bias=config.attention_bias)
    q = b.rms_norm(q, f"{module}.q_norm", config.rms_norm_eps, width=config.head_dim)
    k = b.rms_norm(k, f"{module}.k_norm", config.rms_norm_eps, width=config.head_dim)
    attended = rotary_attention(b, config, q, k, v, layer)
    return b.linear(attended, f"{module}.o_proj", config.hidden_size, bias=config.attention_bias)

# SPDX-License-Identifier: Apache-2.0
"""Llama (Touvron et al. 2023) and what shares its layer: SmolLM2, and Mistral (Jiang et al. 2023), which attends
through a sliding window. transformers: models/llama/modeling_llama.py."""

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
    attended = rotary_attention(b, config, q, k, v, layer)
    return b.linear(attended, f"{module}.o_proj", config.hidden_size, bias=config.attention_bias)

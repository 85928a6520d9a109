# SPDX-License-Identifier: Apache-2.0
"""Gemma 3, text (Gemma team 2025): embeddings scaled by sqrt(hidden_size), four norms in a layer (each stored minus
one), RMSNorm on the heads of q and k, GeGLU, and layers that alternate between a sliding window with a short rotary
base and full attention with a long one. transformers: models/gemma3/modeling_gemma3.py."""

from __future__ import annotations

import math

from paged.model_config import ModelConfig
from paged.models.blocks import gated_mlp, output_module, project_qkv, rotary_attention
from paged.program.builder import Builder
from paged.program.ir import Value


def write(b: Builder, config: ModelConfig) -> Value:
    """Logits [logits rows, vocab_size]."""
    x = b.embedding("model.embed_tokens", config.hidden_size, scale=math.sqrt(config.hidden_size))
    for layer in b.layers():
        module = f"model.layers.{layer}"
        normed = norm(b, config, x, f"{module}.input_layernorm")
        attended = attention(b, config, normed, f"{module}.self_attn", layer)
        x = b.add(x, norm(b, config, attended, f"{module}.post_attention_layernorm"))
        normed = norm(b, config, x, f"{module}.pre_feedforward_layernorm")
        transformed = gated_mlp(b, config, normed, f"{module}.mlp")
        x = b.add(x, norm(b, config, transformed, f"{module}.post_feedforward_layernorm"))
    x = norm(b, config, x, "model.norm")
    return b.logits(x, output_module(config), softcap=config.final_logit_softcapping)


def attention(b: Builder, config: ModelConfig, x: Value, module: str, layer: int) -> Value:
    """[T, hidden_size]"""
    q, k, v = project_qkv(b, config, x, module, bias=config.attention_bias)
    q = norm(b, config, q, f"{module}.q_norm", config.head_dim)
    k = norm(b, config, k, f"{module}.k_norm", config.head_dim)
    attended = rotary_attention(b, config, q, k, v, layer)
    return b.linear(attended, f"{module}.o_proj", config.hidden_size, bias=config.attention_bias)


def norm(b: Builder, config: ModelConfig, x: Value, module: str, width: int | None = None) -> Value:
    return b.rms_norm(x, module, config.rms_norm_eps, width=width, offset=1.0)

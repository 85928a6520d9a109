# SPDX-License-Identifier: Apache-2.0
"""Pieces that several model files share. `module` is the piece's place in a Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Callable

from paged.model_config import ModelConfig
from paged.program.builder import Builder
from paged.program.ir import Attention, Value


def pre_norm_decoder(
    b: Builder, config: ModelConfig, attention: Callable[[Builder, ModelConfig, Value, str, int], Value]
) -> Value:
    """Llama's skeleton, which most families keep: x += attention(norm(x)); x += mlp(norm(x)). Gives the logits."""
    x = b.embedding("model.embed_tokens", config.hidden_size)
    for layer in b.layers():
        module = f"model.layers.{layer}"
        normed = b.rms_norm(x, f"{module}.input_layernorm", config.rms_norm_eps)
        x = b.add(x, attention(b, config, normed, f"{module}.self_attn", layer))
        normed = b.rms_norm(x, f"{module}.post_attention_layernorm", config.rms_norm_eps)
        x = b.add(x, gated_mlp(b, config, normed, f"{module}.mlp"))
    x = b.rms_norm(x, "model.norm", config.rms_norm_eps)
    return b.logits(x, output_module(config))


def project_qkv(
    b: Builder, config: ModelConfig, x: Value, module: str, *, bias: bool
) -> tuple[Value, Value, Value]:  # fmt: skip
    """Queries [T, num_heads * head_dim], keys and values [T, num_kv_heads * head_dim]."""
    q = b.linear(x, f"{module}.q_proj", config.num_heads * config.head_dim, bias=bias)
    k = b.linear(x, f"{module}.k_proj", config.num_kv_heads * config.head_dim, bias=bias)
    v = b.linear(x, f"{module}.v_proj", config.num_kv_heads * config.head_dim, bias=bias)
    return q, k, v


def rotary_attention(b: Builder, config: ModelConfig, q: Value, k: Value, v: Value, layer: int) -> Value:
    """Rotates q and k, stores the layer's K and V, and attends: [T, num_heads * head_dim]."""
    here = config.layers[layer]
    q = b.rope(q, here.rope, config.head_dim)
    k = b.rope(k, here.rope, config.head_dim)
    return b.attention(q, k, v, Attention(layer, config.num_heads, config.attention_scale, here.window))


def gated_mlp(b: Builder, config: ModelConfig, x: Value, module: str) -> Value:
    """down(activation(gate(x)) * up(x)): SwiGLU or GeGLU (Shazeer 2020)."""
    gate = b.linear(x, f"{module}.gate_proj", config.intermediate_size, bias=config.mlp_bias)
    up = b.linear(x, f"{module}.up_proj", config.intermediate_size, bias=config.mlp_bias)
    hidden = b.gated_activation(gate, up, config.activation)
    return b.linear(hidden, f"{module}.down_proj", config.hidden_size, bias=config.mlp_bias)


def output_module(config: ModelConfig) -> str:
    """The module whose weight turns hidden states into logits."""
    return "model.embed_tokens" if config.tie_word_embeddings else "lm_head"

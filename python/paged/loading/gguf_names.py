# SPDX-License-Identifier: Apache-2.0
"""GGUF tensor names -> Hugging Face's, for each architecture (source: llama.cpp, gguf-py tensor_mapping.py)."""

import re

_GLOBAL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA3 = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_LAYERS = {
    "llama": _LAYER,
    "qwen2": _LAYER,
    "qwen3": _LAYER | _QK_NORM,
    "gemma3": _LAYER | _QK_NORM | _GEMMA3,
}
ARCHITECTURES = tuple(_LAYERS)
_LAYER_NAME = re.compile(r"blk\.(0|[1-9][0-9]{0,4})\.([a-z0-9_]+)\.(weight|bias)")


def hugging_face_name(name: str, architecture: str) -> str | None:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; None if there is none."""
    if name in _GLOBAL:
        return _GLOBAL[name]
    match = _LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in _LAYERS[architecture]:
        return None
    return f"model.layers.{match[1]}.{_LAYERS[architecture][match[2]]}.{match[3]}"

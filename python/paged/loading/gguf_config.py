# SPDX-License-Identifier: Apache-2.0
"""GGUF metadata -> what config.json and generation_config.json of the same model say.

Keys are llama.cpp's (gguf-py constants.py). GGUF keeps numbers as float32: six digits bring back the number meant.
"""

from collections.abc import Callable
from typing import Any

from paged.loading.errors import CheckpointError
from paged.loading.gguf_file import GgufFile
from paged.loading.gguf_names import ARCHITECTURES
from paged.loading.gguf_rope import rope_parameters
from paged.loading.gguf_values import Values

Config = dict[str, Any]
_GEMMA3_27B_LAYERS = 62  # GGUF does not keep query_pre_attn_scalar; only this size departs from head_dim


def architecture_of(file: GgufFile) -> str:
    """One of ARCHITECTURES, or CheckpointError."""
    found = file.metadata.get("general.architecture")
    if found not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"{file.path}: expected general.architecture among {known}, found {found!r}")
    return str(found)


def hugging_face_config(file: GgufFile) -> Config:
    """Raises CheckpointError if a key is missing, of the wrong type, or says what no supported model does."""
    values = Values(file, architecture_of(file))
    common = _common(file, values)
    return common | _BY_ARCHITECTURE[values.architecture](file, values, common)


def generation_config(file: GgufFile) -> Config:
    """bos, eos (a list: end of sequence, of turn, of message) and pad token ids, as far as the file has them."""
    values = Values(file, architecture_of(file))
    ends = [values.token_id(name) for name in ("eos", "eot", "eom")]
    unique = list(dict.fromkeys(end for end in ends if end is not None))
    return {"bos_token_id": values.token_id("bos"), "eos_token_id": unique, "pad_token_id": values.token_id("padding")}


def _common(file: GgufFile, values: Values) -> Config:
    heads, hidden = values.integer("attention.head_count"), values.integer("embedding_length")
    layers = values.integer("block_count")
    if "token_embd.weight" not in file.tensors:
        raise CheckpointError(f"{file.path}: has no tensor 'token_embd.weight'")
    if layers > len(file.tensors):
        raise CheckpointError(f"{file.path}: block_count is {layers}, but there are {len(file.tensors)} tensors")
    head_dim = values.integer("attention.key_length", hidden // heads)
    if values.integer("attention.value_length", head_dim) != head_dim:
        raise CheckpointError(f"{file.path}: attention.value_length differs from the key length {head_dim}")
    if values.integer("rope.dimension_count", head_dim) != head_dim:
        raise CheckpointError(f"{file.path}: rope.dimension_count differs from the head size {head_dim}")
    return {
        "hidden_size": hidden,
        "intermediate_size": values.integer("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": values.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": values.integer("context_length"),
        "rms_norm_eps": values.real("attention.layer_norm_rms_epsilon"),
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": values.token_id("bos"),
        "eos_token_id": values.token_id("eos"),
        "pad_token_id": values.token_id("padding"),
    }


def _llama(file: GgufFile, values: Values, common: Config) -> Config:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "rope_parameters": rope_parameters(file, values, 10000.0, common["head_dim"]),
    }


def _qwen2(file: GgufFile, values: Values, common: Config) -> Config:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "use_sliding_window": False,
        "rope_parameters": rope_parameters(file, values, 10000.0, common["head_dim"]),
    }


def _qwen3(file: GgufFile, values: Values, common: Config) -> Config:
    qwen3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False}
    return _qwen2(file, values, common) | qwen3


def _gemma3(file: GgufFile, values: Values, common: Config) -> Config:
    layers, head_dim = common["num_hidden_layers"], common["head_dim"]
    scalar = common["hidden_size"] // common["num_attention_heads"] if layers == _GEMMA3_27B_LAYERS else head_dim
    period = values.integer("attention.sliding_window_pattern", 6)
    kinds = ["sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(layers)]
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": scalar,
        "sliding_window": values.integer("attention.sliding_window"),
        "layer_types": kinds,
        "attn_logit_softcapping": values.optional_real("attn_logit_softcapping"),
        "final_logit_softcapping": values.optional_real("final_logit_softcapping"),
        "use_bidirectional_attention": False,
        "rope_parameters": {
            "full_attention": rope_parameters(file, values, 1000000.0, common["head_dim"]),
            "sliding_attention": {"rope_theta": values.real("rope.freq_base_swa", 10000.0), "rope_type": "default"},
        },
    }


_BY_ARCHITECTURE: dict[str, Callable[[GgufFile, Values, Config], Config]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
}

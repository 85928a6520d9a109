# SPDX-License-Identifier: Apache-2.0
"""Random tiny models of every family, built by transformers, for the tests of loading, kernels and engine.

Weights are drawn so that activations stay near one and logits spread, unlike transformers' own initialisation, under
which a wrong model still gives almost the right (almost constant) logits.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

torch.set_num_threads(1)  # products this small lose more to a second thread than they win

_SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_GEMMA3 = {
    "head_dim": 32,
    "num_hidden_layers": 4,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "query_pre_attn_scalar": 24,
    "tie_word_embeddings": True,
}
_QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}

# name -> (architecture, keys of its config on top of the sizes above)
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied-mha": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama-bias": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-gelu-head-dim": ("Llama", {"head_dim": 32, "hidden_act": "gelu"}),
    "llama-rope-llama3": ("Llama", {"rope_parameters": _LLAMA3}),
    "llama-rope-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    "llama-rope-yarn": ("Llama", {"rope_parameters": _YARN}),
    "mistral": ("Mistral", {"sliding_window": 8}),
    "mistral-full": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen2-window": ("Qwen2", _QWEN_WINDOW),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-window-bias": ("Qwen3", {"head_dim": 16, "attention_bias": True, **_QWEN_WINDOW}),
    "gemma3": ("Gemma3", _GEMMA3),
    "gemma3-softcap": ("Gemma3", {**_GEMMA3, "final_logit_softcapping": 5.0, "attention_bias": True}),
}


@dataclass(frozen=True)
class TinyModel:
    """A transformers model in float32, its config.json and its weights as a checkpoint stores them."""

    name: str
    config: dict[str, Any]
    model: Any

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return dict(self.model.state_dict())

    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """[len(token_ids), vocab_size] float32 by transformers."""
        with torch.no_grad():
            return self.model(torch.tensor([token_ids])).logits[0]

    def save(self, folder: Path, *, max_shard_size: str = "5GB", dtype: torch.dtype = torch.float32) -> Path:
        """A Hugging Face folder; "20KB" splits it into several safetensors files."""
        copy.deepcopy(self.model).to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
        return folder


@functools.cache
def tiny_model(name: str, seed: int = 0) -> TinyModel:
    """The variant `name`, the same for the same seed."""
    return build(*VARIANTS[name], name=name, seed=seed)


def build(family: str, keys: Mapping[str, Any], *, name: str = "", seed: int = 0) -> TinyModel:
    """A model of the family ("Llama", "Qwen3", ...) with these keys of its config."""
    config_class = getattr(transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config")
    model = getattr(transformers, f"{family}ForCausalLM")(config_class(**{**_SIZES, **keys})).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            _draw(parameter_name, parameter, generator, centred_norm=family == "Gemma3")
    config = {**model.config.to_dict(), "architectures": [f"{family}ForCausalLM"]}
    model.config.architectures = config["architectures"]
    return TinyModel(name or family, config, model)


def _draw(name: str, parameter: torch.Tensor, generator: torch.Generator, *, centred_norm: bool) -> None:
    noise = torch.randn(parameter.shape, generator=generator)
    if parameter.ndim == 2:
        parameter.copy_(noise * 1.2 / math.sqrt(parameter.shape[1]))
    elif name.endswith(".bias"):
        parameter.copy_(noise * 0.3)
    else:
        parameter.copy_(noise * 0.2 + (0.0 if centred_norm else 1.0))

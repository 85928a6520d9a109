# SPDX-License-Identifier: Apache-2.0
"""config.json is read in both spellings, and refused with the key, what arrived and what was expected."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from paged.model_config import ModelConfig
from paged.models import record
from tiny_models import VARIANTS, tiny_model

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GEMMA3: dict[str, Any] = {**LLAMA, "architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 7}
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


def test_absent_keys_get_transformers_defaults() -> None:
    config = ModelConfig.from_hf(LLAMA)
    assert (config.num_kv_heads, config.head_dim, config.rms_norm_eps, config.activation) == (4, 16, 1e-6, "silu")
    assert not config.tie_word_embeddings
    assert {layer.window for layer in config.layers} == {0}
    assert {layer.rope.theta for layer in config.layers} == {10000.0}
    gemma = ModelConfig.from_hf(GEMMA3)
    assert (gemma.head_dim, gemma.tie_word_embeddings, gemma.activation) == (256, True, "gelu_tanh")
    assert gemma.attention_scale == 256**-0.5
    assert [layer.window for layer in gemma.layers] == [4096] * 5 + [0, 4096]
    assert [layer.rope.theta for layer in gemma.layers] == [10_000.0] * 5 + [1e6, 10_000.0]
    assert ModelConfig.from_hf({**LLAMA, "architectures": ["Qwen3ForCausalLM"]}).head_dim == 128


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 500.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        (
            {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
        ),
        (
            {"rope_theta": 500.0, "rope_scaling": {"rope_type": "llama3", **_LLAMA3}},
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **_LLAMA3}},
        ),
        ({"rope_scaling": None}, {"rope_parameters": {"rope_theta": 10000.0}}),
    ],
)
def test_rope_of_transformers_4_and_5(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert ModelConfig.from_hf({**LLAMA, **old}) == ModelConfig.from_hf({**LLAMA, **new})


def test_gemma3_of_transformers_4_and_5() -> None:
    sliding = {"rope_type": "default", "rope_theta": 5000.0}
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6}
    new = {
        "layer_types": ["sliding_attention", "full_attention"] * 3 + ["sliding_attention"],
        "rope_parameters": {"sliding_attention": sliding, "full_attention": full},
        "sliding_window": 16,
    }
    old = {
        "sliding_window_pattern": 2,
        "rope_theta": 2e6,
        "rope_local_base_freq": 5000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 16,
    }
    config = ModelConfig.from_hf({**GEMMA3, **new})
    assert config == ModelConfig.from_hf({**GEMMA3, **old})
    assert [layer.rope.rope_type for layer in config.layers[:2]] == ["default", "linear"]


def test_windows_of_mistral_and_qwen() -> None:
    mistral = {**LLAMA, "architectures": ["MistralForCausalLM"]}
    assert {layer.window for layer in ModelConfig.from_hf(mistral).layers} == {4096}
    assert {layer.window for layer in ModelConfig.from_hf({**mistral, "sliding_window": None}).layers} == {0}
    qwen = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "sliding_window": 32, "max_window_layers": 1}
    assert [layer.window for layer in ModelConfig.from_hf(qwen).layers] == [0, 0]
    assert [layer.window for layer in ModelConfig.from_hf({**qwen, "use_sliding_window": True}).layers] == [0, 32]


def test_partial_rotation() -> None:
    for keys in ({"partial_rotary_factor": 0.5}, {"rope_parameters": {"partial_rotary_factor": 0.5}}):
        program = record(ModelConfig.from_hf({**LLAMA, **keys}), "float32")
        rope = next(op.attributes for op in program.ops if op.kind == "rope")
        assert (rope.head_dim, rope.rotary_dim) == (16, 8)


def test_yarn_attention_factor() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}

    def factor(**keys: float) -> float:
        config = ModelConfig.from_hf({**LLAMA, "rope_scaling": {**yarn, **keys}})
        return config.layers[0].rope.attention_factor

    assert factor() == pytest.approx(0.1 * math.log(4.0) + 1.0)
    assert factor(attention_factor=0.7) == 0.7
    assert factor(mscale=1.0, mscale_all_dim=1.0) == 1.0


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", None, "hidden_size must be an integer .*, got nothing"),
        ("hidden_size", "64", "hidden_size must be an integer .*, got '64'"),
        ("hidden_size", True, "hidden_size must be an integer .*, got True"),
        ("hidden_size", 0, "hidden_size must be an integer from 1 to .*, got 0"),
        ("hidden_size", 10**30, "hidden_size must be an integer"),
        ("hidden_size", 65, "hidden_size 65 is no multiple of num_attention_heads 4"),
        ("vocab_size", 3.5, "vocab_size must be an integer .*, got 3.5"),
        ("num_hidden_layers", -1, "num_hidden_layers must be an integer"),
        ("num_hidden_layers", 10**9, "num_hidden_layers must be an integer from 1 to 4096"),
        ("num_key_value_heads", 3, "4 num_attention_heads cannot share 3 num_key_value_heads"),
        ("head_dim", 17, "partial_rotary_factor must be a share of head_dim 17"),
        ("rms_norm_eps", math.nan, "rms_norm_eps must be a finite number above 0, got nan"),
        ("rms_norm_eps", math.inf, "rms_norm_eps must be a finite number"),
        ("hidden_act", "relu", "hidden_act must be one of silu, .*, got 'relu'"),
        ("tie_word_embeddings", "yes", "tie_word_embeddings must be true or false, got 'yes'"),
        ("rope_theta", -1.0, "rope_theta must be a finite number above 0, got -1.0"),
        ("rope_scaling", [1], r"rope_scaling must be an object, got \[1\]"),
        ("rope_scaling", {"rope_type": "dynamic"}, "rope_scaling.rope_type must be one of default, .*'dynamic'"),
        ("rope_scaling", {"rope_type": "linear"}, "rope_scaling.factor must be a finite number above 0, got nothing"),
        ("rope_scaling", {"rope_type": "llama3", **_LLAMA3, "low_freq_factor": 9.0}, "high_freq_factor must be above"),
        ("partial_rotary_factor", 2.0, "partial_rotary_factor must be a share of head_dim 16"),
        ("final_logit_softcapping", -30.0, "final_logit_softcapping must be a finite number above 0"),
        ("attn_logit_softcapping", 50.0, "attn_logit_softcapping must be null"),
        ("quantization_config", {"bits": 4}, "quantization_config must be absent"),
        ("architectures", [], "architectures must be a list of names"),
        ("architectures", "LlamaForCausalLM", "architectures must be a list of names"),
        ("hidden_size", "x" * 10_000, r"hidden_size must be an integer .{1,120}\.\.\.$"),
    ],
)
def test_bad_values_are_named(key: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf({**LLAMA, key: value})


def test_layer_types_must_cover_the_layers() -> None:
    for kinds in (["full_attention"], ["full_attention", "chunked_attention"], "full_attention", [[], []]):
        with pytest.raises(ValueError, match="layer_types must be a list of 2 names"):
            ModelConfig.from_hf({**LLAMA, "architectures": ["Qwen2ForCausalLM"], "layer_types": kinds})


def test_mutilated_configs_raise_value_errors_or_load() -> None:
    rng = random.Random(0)
    junk = [None, True, -1, 0, 1, 7, 2**40, 1e300, math.nan, "", "silu", [], [1], {}, {"rope_type": "yarn"}]
    for _ in range(500):
        config = dict(tiny_model(rng.choice(list(VARIANTS))).config)
        for key in rng.sample(sorted(config), k=2):
            config[key] = rng.choice(junk)
        try:
            parsed = ModelConfig.from_hf(config)
        except ValueError:
            continue
        if parsed.num_layers <= 8:
            record(parsed, "float32")

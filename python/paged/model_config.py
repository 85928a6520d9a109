# SPDX-License-Identifier: Apache-2.0
"""What a model file needs to know of a checkpoint, parsed from a Hugging Face `config.json`.

The file is data from a stranger: every value is checked, and what does not fit raises ValueError with the key, what
arrived and what was expected. Spellings of transformers 4 (rope_theta, rope_scaling, sliding_window_pattern) and of
transformers 5 (rope_parameters, layer_types) are both read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from paged.program.ir import ActivationKind
from paged.program.rope_tables import RopeSpec, yarn_attention_factor

_ACTIVATIONS: Mapping[str, ActivationKind] = MappingProxyType(
    {
        "silu": "silu",
        "swish": "silu",
        "gelu": "gelu_erf",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
    }
)

# What transformers assumes of a key that an architecture's config.json leaves out.
FAMILY_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "LlamaForCausalLM": {"hidden_act": "silu"},
        "MistralForCausalLM": {"hidden_act": "silu", "sliding_window": 4096},
        "Qwen2ForCausalLM": {"hidden_act": "silu"},
        "Qwen3ForCausalLM": {"hidden_act": "silu", "head_dim": 128},
        "Gemma3ForCausalLM": {
            "hidden_activation": "gelu_pytorch_tanh",
            "head_dim": 256,
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "rope_theta": 1_000_000.0,
        },
    }
)

_MAX_SIZE = 1 << 24  # of any one dimension: far above every model, far below overflow of a product of two


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """How one layer attends: `window` 0 sees everything before it."""

    window: int
    rope: RopeSpec


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and constants of a decoder. `attention_scale` multiplies q.k; `final_logit_softcapping` 0 means none."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rms_norm_eps: float
    activation: ActivationKind
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    attention_scale: float
    final_logit_softcapping: float
    layers: tuple[LayerConfig, ...]

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> ModelConfig:
        """Parses `config.json`. Raises ValueError for an unknown architecture, listing the known ones, and for every
        value that is missing, of the wrong type, or out of range."""
        architecture = _architecture(config)
        keys = _Keys({**FAMILY_DEFAULTS[architecture], **config})
        num_heads = keys.size("num_attention_heads")
        num_kv_heads = keys.size("num_key_value_heads", num_heads)
        if num_heads % num_kv_heads:
            raise ValueError(f"config: {num_heads} num_attention_heads cannot share {num_kv_heads} num_key_value_heads")
        hidden_size = keys.size("hidden_size")
        head_dim = _head_dim(keys, hidden_size, num_heads)
        num_layers = keys.size("num_hidden_layers", most=4096)
        max_positions = keys.size("max_position_embeddings")
        _reject_unsupported(keys)
        return ModelConfig(
            architecture=architecture,
            vocab_size=keys.size("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=keys.size("intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            max_positions=max_positions,
            rms_norm_eps=keys.positive("rms_norm_eps", 1e-6),
            activation=_activation(keys),
            tie_word_embeddings=keys.flag("tie_word_embeddings", False),
            attention_bias=keys.flag("attention_bias", False),
            mlp_bias=keys.flag("mlp_bias", False),
            attention_scale=keys.positive("query_pre_attn_scalar", float(head_dim)) ** -0.5,
            final_logit_softcapping=_final_softcapping(keys),
            layers=_layers(keys, architecture, num_layers, _RopeContext(head_dim, max_positions)),
        )


class _Keys:
    """Typed look-ups in a JSON object; `prefix` names where it lies."""

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self.values = {key: value for key, value in values.items() if value is not None}  # null is absent
        self.prefix = prefix

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def fail(self, key: str, expected: str) -> ValueError:
        found = repr(self.values[key]) if key in self.values else "nothing"
        found = found if len(found) <= 80 else found[:77] + "..."
        return ValueError(f"config: {self.prefix}{key} must be {expected}, got {found}")

    def size(self, key: str, default: int | None = None, most: int = _MAX_SIZE) -> int:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.fail(key, f"an integer from 1 to {most}")
        return value

    def positive(self, key: str, default: float | None = None, *, above: float = 0.0) -> float:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= 1e30:
            raise self.fail(key, f"a finite number above {above:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, "true or false")
        return value

    def word(self, key: str, default: str | None, known: Mapping[str, Any] | tuple[str, ...]) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str) or value not in known:
            raise self.fail(key, f"one of {', '.join(known)}")
        return value

    def object(self, key: str) -> _Keys:
        value = self.values.get(key, {})
        if not isinstance(value, Mapping):
            raise self.fail(key, "an object")
        return _Keys(value, f"{self.prefix}{key}.")


@dataclass(frozen=True, slots=True)
class _RopeContext:
    head_dim: int
    max_positions: int


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"config: architectures must be a list of names, got {names!r:.80}")
    for name in names:
        if name in FAMILY_DEFAULTS:
            return str(name)
    raise ValueError(f"config: unknown architecture {', '.join(names)!r:.80}; known: {', '.join(FAMILY_DEFAULTS)}")


def _head_dim(keys: _Keys, hidden_size: int, num_heads: int) -> int:
    if "head_dim" not in keys and hidden_size % num_heads:
        raise ValueError(f"config: hidden_size {hidden_size} is no multiple of num_attention_heads {num_heads}")
    return keys.size("head_dim", hidden_size // num_heads, most=4096)


def _activation(keys: _Keys) -> ActivationKind:
    key = "hidden_activation" if "hidden_activation" in keys else "hidden_act"
    return _ACTIVATIONS[keys.word(key, None, _ACTIVATIONS)]


def _final_softcapping(keys: _Keys) -> float:
    return keys.positive("final_logit_softcapping") if "final_logit_softcapping" in keys else 0.0


def _reject_unsupported(keys: _Keys) -> None:
    """Keys that change the mathematics in a way no model file here writes."""
    if "attn_logit_softcapping" in keys:
        raise keys.fail("attn_logit_softcapping", "null: none of the known architectures caps attention scores")
    if keys.flag("use_bidirectional_attention", False):
        raise keys.fail("use_bidirectional_attention", "false: attention is causal")
    if "quantization_config" in keys:
        raise keys.fail("quantization_config", "absent: Hugging Face folders load unquantised, GGUF files quantised")


def _layers(keys: _Keys, architecture: str, num_layers: int, context: _RopeContext) -> tuple[LayerConfig, ...]:
    sliding = _sliding_layers(keys, architecture, num_layers)
    window = keys.size("sliding_window") if any(sliding) else 0
    parse_ropes = _gemma3_ropes if architecture == "Gemma3ForCausalLM" else _plain_ropes
    full_rope, local_rope = parse_ropes(keys, context)
    full, local = LayerConfig(0, full_rope), LayerConfig(window, local_rope)
    return tuple(local if slides else full for slides in sliding)


def _sliding_layers(keys: _Keys, architecture: str, num_layers: int) -> list[bool]:
    """Which layers attend through the sliding window."""
    if architecture == "LlamaForCausalLM":
        return [False] * num_layers
    if architecture == "MistralForCausalLM":
        return ["sliding_window" in keys] * num_layers
    if "layer_types" in keys:
        kinds = keys.values["layer_types"]
        known = ("full_attention", "sliding_attention")
        if not isinstance(kinds, list | tuple) or len(kinds) != num_layers or any(kind not in known for kind in kinds):
            raise keys.fail("layer_types", f"a list of {num_layers} names out of {', '.join(known)}")
        return [kind == "sliding_attention" for kind in kinds]
    if architecture == "Gemma3ForCausalLM":
        key = "sliding_window_pattern" if "sliding_window_pattern" in keys else "_sliding_window_pattern"
        pattern = keys.size(key, 6)
        return [(layer + 1) % pattern != 0 for layer in range(num_layers)]
    if not keys.flag("use_sliding_window", False) or "sliding_window" not in keys:
        return [False] * num_layers
    first = keys.values.get("max_window_layers", 28)
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise keys.fail("max_window_layers", "an integer of at least 0")
    return [layer >= first for layer in range(num_layers)]


def _plain_ropes(keys: _Keys, context: _RopeContext) -> tuple[RopeSpec, RopeSpec]:
    """The rotations of full and of sliding layers, where a file may give one for both."""
    theta = keys.positive("rope_theta", 10_000.0)
    flat = keys.object("rope_parameters" if "rope_parameters" in keys else "rope_scaling")
    both = [flat.object(kind) if kind in flat else flat for kind in ("full_attention", "sliding_attention")]
    full, local = (_rope(keys, parameters, theta, context) for parameters in both)
    return full, local


def _gemma3_ropes(keys: _Keys, context: _RopeContext) -> tuple[RopeSpec, RopeSpec]:
    """Two bases; an old file's rope_scaling belongs to the full layers alone."""
    theta, local_theta = keys.positive("rope_theta"), keys.positive("rope_local_base_freq", 10_000.0)
    new = keys.object("rope_parameters")
    full = keys.object("rope_scaling") if "rope_scaling" in keys else new.object("full_attention")
    local = new.object("sliding_attention")
    return _rope(keys, full, theta, context), _rope(keys, local, local_theta, context)


def _rope(keys: _Keys, parameters: _Keys, theta: float, context: _RopeContext) -> RopeSpec:
    type_key = "rope_type" if "rope_type" in parameters else "type"
    rope_type = parameters.word(type_key, "default", ("default", "linear", "llama3", "yarn"))
    share_of = parameters if "partial_rotary_factor" in parameters else keys
    share = share_of.positive("partial_rotary_factor", 1.0)
    rotary_dim = int(context.head_dim * share)
    if share > 1.0 or rotary_dim < 2 or rotary_dim % 2:
        raise share_of.fail("partial_rotary_factor", f"a share of head_dim {context.head_dim} that gives an even size")
    theta = parameters.positive("rope_theta", theta, above=1.0)
    if rope_type == "default":
        return RopeSpec("default", theta, rotary_dim)
    if rope_type == "linear":
        return RopeSpec("linear", theta, rotary_dim, parameters.positive("factor"))
    source = keys if "original_max_position_embeddings" in keys else parameters
    original = source.size("original_max_position_embeddings", context.max_positions)
    if rope_type == "llama3":
        return _llama3(parameters, RopeSpec("llama3", theta, rotary_dim, parameters.positive("factor"), original))
    factor = parameters.positive("factor", context.max_positions / original)
    return _yarn(parameters, RopeSpec("yarn", theta, rotary_dim, factor, original))


def _llama3(parameters: _Keys, spec: RopeSpec) -> RopeSpec:
    low, high = parameters.positive("low_freq_factor"), parameters.positive("high_freq_factor")
    if low >= high:
        raise parameters.fail("high_freq_factor", f"above low_freq_factor {low}")
    return replace(spec, low_freq_factor=low, high_freq_factor=high)


def _yarn(parameters: _Keys, spec: RopeSpec) -> RopeSpec:
    attention = yarn_attention_factor(spec.factor)
    if "attention_factor" in parameters:
        attention = parameters.positive("attention_factor")
    elif "mscale" in parameters and "mscale_all_dim" in parameters:
        upper, lower = parameters.positive("mscale"), parameters.positive("mscale_all_dim")
        attention = yarn_attention_factor(spec.factor, upper) / yarn_attention_factor(spec.factor, lower)
    return replace(
        spec,
        beta_fast=parameters.positive("beta_fast", 32.0),
        beta_slow=parameters.positive("beta_slow", 1.0),
        truncate=parameters.flag("truncate", True),
        attention_factor=attention,
    )

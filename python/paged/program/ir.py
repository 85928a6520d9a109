# SPDX-License-Identifier: Apache-2.0
"""A program: the flat list of ops that a model file writes once and a backend runs in every step.

Owns the vocabulary shared by the builder, the passes, the planner, the listing and the backends. Everything is frozen
data: a pass returns a new program. Every op works on the whole ragged batch; its activations are matrices with a
symbolic number of rows. The ops are those of `src/cpp/ops/ops.h`, attribute for field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

from paged.program.rope_tables import RopeSpec

Rows = Literal["tokens", "logits"]  # how many rows a step gives a value: scheduled tokens, or rows that need logits
DType = Literal["float32", "bfloat16", "float16"]
KvCacheDType = Literal["float32", "bfloat16", "float16", "int8"]
ActivationKind = Literal["silu", "gelu_tanh", "gelu_erf"]

ITEMSIZE: Mapping[DType, int] = MappingProxyType({"float32": 4, "bfloat16": 2, "float16": 2})
KEY_SCALE_GROUP = 32
"""Components of a key of int8 that share a scale; a value has one."""


@dataclass(frozen=True, slots=True)
class Value:
    """An activation matrix [rows, cols], written by one op. With a `base` it is the view of the base's columns
    `column .. column + cols` instead, and no op writes it."""

    id: int
    name: str
    rows: Rows
    cols: int
    dtype: DType
    base: int | None = None
    column: int = 0


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """A constant of the program. "matrix": [out, in], packed for the device at load. "vector": float32; `offset` is
    added in float32 at load (Gemma stores its norms minus one). "table": rope cosines and sines [max_positions,
    rotary_dim] in float32, not in the checkpoint but computed from `rope`; a shorter context may compute fewer rows."""

    name: str
    kind: Literal["matrix", "vector", "table"]
    shape: tuple[int, ...]
    offset: float = 0.0
    rope: RopeSpec | None = None


@dataclass(frozen=True, slots=True)
class KvCacheSpec:
    """`dtype`: None: the program's. "int8": codes in [-127, 127] with float32 scales, max|x| / 127: one for each 32
    components of a head's key of a token, one for its value."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: KvCacheDType | None = None


@dataclass(frozen=True, slots=True)
class Embedding:
    """weights (table [vocab, cols],) -> (out,). Reads the batch's token_ids."""

    kind: ClassVar[str] = "embedding"
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Linear:
    """(x,), weights (num_parts matrices, then no bias or num_parts biases) -> (out,): the parts lie side by side."""

    kind: ClassVar[str] = "linear"
    num_parts: int = 1


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """(x,), weights (vector [width],) -> (out,). Each group of `width` columns is normalised on its own."""

    kind: ClassVar[str] = "rms_norm"
    width: int
    eps: float


@dataclass(frozen=True, slots=True)
class AddRmsNorm:
    """(residual, delta), weights (vector [cols],) -> (residual + delta, its norm). Made by fusion only."""

    kind: ClassVar[str] = "add_rms_norm"
    eps: float


@dataclass(frozen=True, slots=True)
class Add:
    """(a, b) -> (a + b,)"""

    kind: ClassVar[str] = "add"


@dataclass(frozen=True, slots=True)
class Rope:
    """(x,), weights (table,) -> (out,). Rotates the first rotary_dim elements of each head by the batch's positions."""

    kind: ClassVar[str] = "rope"
    head_dim: int
    rotary_dim: int
    interleaved: bool = False


@dataclass(frozen=True, slots=True)
class StoreKv:
    """(k, v) -> (). Writes the layer's cache at the batch's slot_mapping; comes before the layer's attention."""

    kind: ClassVar[str] = "store_kv"
    layer: int


@dataclass(frozen=True, slots=True)
class RopeStoreKv:
    """(q, k, v), weights (table,) -> (rotated q,). Rotated keys go to the cache only. Made by fusion only.

    With weights (table, vector [head_dim], vector [head_dim]) every head of q and of k is first normalised, as rms_norm
    would; the k that came in may then be overwritten."""

    kind: ClassVar[str] = "rope_store_kv"
    layer: int
    head_dim: int
    rotary_dim: int
    interleaved: bool = False
    eps: float = 0.0  # of the norms, if there are any


@dataclass(frozen=True, slots=True)
class Attention:
    """(q,), weights () or (sinks [num_heads],) -> (out,). Causal, over the layer's cache. window > 0: a token sees
    itself and the window - 1 tokens before it. softcap > 0: scores become cap * tanh(score / cap)."""

    kind: ClassVar[str] = "attention"
    layer: int
    num_heads: int
    scale: float
    window: int = 0
    softcap: float = 0.0


@dataclass(frozen=True, slots=True)
class GatedActivation:
    """(gate, up) -> (activation(gate) * up,)"""

    kind: ClassVar[str] = "gated_activation"
    activation: ActivationKind


@dataclass(frozen=True, slots=True)
class GatedLinear:
    """(x,), weights (gate, up) -> (activation(x gate.T) * (x up.T), room for both products side by side). What the
    second output holds afterwards is the backend's business: nobody reads it. Made by fusion only."""

    kind: ClassVar[str] = "gated_linear"
    activation: ActivationKind


@dataclass(frozen=True, slots=True)
class GatherRows:
    """(x,) with token rows -> (out,) with the rows named by the batch's logits_rows."""

    kind: ClassVar[str] = "gather_rows"


@dataclass(frozen=True, slots=True)
class Softcap:
    """(x,) -> (cap * tanh(x / cap),)"""

    kind: ClassVar[str] = "softcap"
    cap: float


Attributes = (
    Embedding | Linear | RmsNorm | AddRmsNorm | Add | Rope | StoreKv | RopeStoreKv | Attention | GatedActivation
    | GatedLinear | GatherRows | Softcap
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Op:
    """`inputs` and `outputs` are value ids, `weights` indices into the program's weights. `layer` is the decoder layer
    that the model file was writing, for the listing; None outside of the layers."""

    attributes: Attributes
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    weights: tuple[int, ...] = ()
    layer: int | None = None

    @property
    def kind(self) -> str:
        return self.attributes.kind


@dataclass(frozen=True, slots=True)
class Program:
    """`values[i].id == i`; every value is written (or its base is) before it is read. `logits` is the id of the result
    [logits rows, vocab_size], always float32. Activations are `dtype`; positions run below `max_positions`."""

    dtype: DType
    ops: tuple[Op, ...]
    values: tuple[Value, ...]
    weights: tuple[WeightSpec, ...]
    logits: int
    kv_cache: KvCacheSpec
    vocab_size: int
    max_positions: int

    @property
    def kv_cache_dtype(self) -> KvCacheDType:
        return self.kv_cache.dtype or self.dtype

    @property
    def kv_bytes_per_token(self) -> int:
        """Of all layers, scales included."""
        cache, dtype = self.kv_cache, self.kv_cache_dtype
        if dtype == "int8":
            of_head = 2 * cache.head_dim + 4 * (-(-cache.head_dim // KEY_SCALE_GROUP) + 1)
        else:
            of_head = 2 * cache.head_dim * ITEMSIZE[dtype]
        return cache.num_layers * cache.num_kv_heads * of_head

# SPDX-License-Identifier: Apache-2.0
"""Records a program: a model file calls these methods once, on symbolic values, and never sees a tensor.

Weights are named by the module that holds them in a Hugging Face checkpoint: "model.norm" reads "model.norm.weight"
(and "model.norm.bias"). Matrices are [out, in]. A shape that does not fit raises ValueError with the weight's name.
"""

from __future__ import annotations

from collections.abc import Iterator

from paged.program.ir import (
    ITEMSIZE,
    ActivationKind,
    Add,
    Attention,
    Attributes,
    DType,
    Embedding,
    GatedActivation,
    GatherRows,
    KvCacheSpec,
    Linear,
    Op,
    Program,
    RmsNorm,
    Rope,
    Rows,
    Softcap,
    StoreKv,
    Value,
    WeightSpec,
)
from paged.program.rope_tables import RopeSpec
from paged.program.shapes import check_op


class Builder:
    """Owns the program while it is written. `dtype` is that of the activations; logits are float32."""

    def __init__(self, kv_cache: KvCacheSpec, *, vocab_size: int, max_positions: int, dtype: DType) -> None:
        if dtype not in ITEMSIZE:
            raise ValueError(f"dtype must be one of {', '.join(ITEMSIZE)}, got {dtype!r}")
        self.dtype = dtype
        self.kv_cache = kv_cache
        self.vocab_size = vocab_size
        self.max_positions = max_positions
        self._ops: list[Op] = []
        self._values: list[Value] = []
        self._weights: list[WeightSpec] = []
        self._weight_index: dict[str, int] = {}
        self._rope_tables: dict[RopeSpec, int] = {}
        self._layer: int | None = None

    def layers(self) -> Iterator[int]:
        """Counts the layers; what is recorded meanwhile belongs to the layer, which is how the listing folds them."""
        for layer in range(self.kv_cache.num_layers):
            self._layer = layer
            yield layer
        self._layer = None

    def embedding(self, module: str, hidden_size: int, scale: float = 1.0) -> Value:
        """Rows of the table [vocab_size, hidden_size] at the batch's token ids, times `scale`."""
        table = self._matrix(f"{module}.weight", (self.vocab_size, hidden_size))
        out = self._value(_last(module), hidden_size)
        self._record(Embedding(scale), (), (out,), (table,))
        return out

    def linear(self, x: Value, module: str, cols: int, *, bias: bool = False) -> Value:
        """x @ weight.T (+ bias) with weight [cols, x.cols]."""
        return self._linear(x, module, self._value(_last(module), cols, x.rows), bias)

    def rms_norm(
        self, x: Value, module: str, eps: float, *, width: int | None = None, offset: float = 0.0
    ) -> Value:  # fmt: skip
        """RMSNorm (Zhang & Sennrich 2019) of each group of `width` columns, by default of the whole row. The weight is
        [width]; `offset` is added to it at load."""
        width = x.cols if width is None else width
        weight = self._weight(WeightSpec(f"{module}.weight", "vector", (width,), offset=offset))
        out = self._value(_last(module), x.cols, x.rows)
        self._record(RmsNorm(width, eps), (x,), (out,), (weight,))
        return out

    def rope(self, x: Value, spec: RopeSpec, head_dim: int, *, interleaved: bool = False) -> Value:
        """Rotates the first spec.rotary_dim elements of each head: pairs (i, i + rotary_dim / 2), or (2i, 2i + 1)."""
        table = self._rope_tables.get(spec)
        if table is None:
            name = f"rope_table.{len(self._rope_tables)}"
            table = self._weight(WeightSpec(name, "table", (self.max_positions, spec.rotary_dim), rope=spec))
            self._rope_tables[spec] = table
        out = self._value(f"{x.name}_rope", x.cols, x.rows)
        self._record(Rope(head_dim, spec.rotary_dim, interleaved), (x,), (out,), (table,))
        return out

    def attention(self, q: Value, k: Value, v: Value, attention: Attention, *, sinks: str | None = None) -> Value:
        """Stores k and v into the layer's cache, then attends over it. `sinks` names a weight [num_heads]."""
        weights = () if sinks is None else (self._weight(WeightSpec(sinks, "vector", (attention.num_heads,))),)
        self._record(StoreKv(attention.layer), (k, v), (), ())
        out = self._value("attention", q.cols, q.rows)
        self._record(attention, (q,), (out,), weights)
        return out

    def gated_activation(self, gate: Value, up: Value, activation: ActivationKind) -> Value:
        """activation(gate) * up: SwiGLU and GeGLU (Shazeer 2020)."""
        out = self._value(activation, gate.cols, gate.rows)
        self._record(GatedActivation(activation), (gate, up), (out,), ())
        return out

    def add(self, residual: Value, delta: Value) -> Value:
        out = self._value("residual", residual.cols, residual.rows)
        self._record(Add(), (residual, delta), (out,), ())
        return out

    def gather_logits_rows(self, x: Value) -> Value:
        """The rows of x that need logits in this step."""
        out = self._value(f"{x.name}_rows", x.cols, "logits")
        self._record(GatherRows(), (x,), (out,), ())
        return out

    def logits(self, x: Value, module: str, *, softcap: float = 0.0) -> Value:
        """float32 logits [logits rows, vocab_size] of x [tokens, hidden]; softcap > 0 bounds them (Gemma 2)."""
        rows = self.gather_logits_rows(x)
        out = self._linear(rows, module, self._value("logits", self.vocab_size, "logits", "float32"), bias=False)
        return self.softcap(out, softcap) if softcap > 0.0 else out

    def softcap(self, x: Value, cap: float) -> Value:
        """cap * tanh(x / cap)"""
        out = self._value(f"{x.name}_capped", x.cols, x.rows, x.dtype)
        self._record(Softcap(cap), (x,), (out,), ())
        return out

    def finish(self, logits: Value) -> Program:
        """The program whose result is `logits`."""
        return Program(
            self.dtype, tuple(self._ops), tuple(self._values), tuple(self._weights), logits.id, self.kv_cache,
            self.vocab_size, self.max_positions,
        )  # fmt: skip

    def _linear(self, x: Value, module: str, out: Value, bias: bool) -> Value:
        weights = [self._matrix(f"{module}.weight", (out.cols, x.cols))]
        if bias:
            weights.append(self._weight(WeightSpec(f"{module}.bias", "vector", (out.cols,))))
        self._record(Linear(), (x,), (out,), tuple(weights))
        return out

    def _matrix(self, name: str, shape: tuple[int, int]) -> int:
        return self._weight(WeightSpec(name, "matrix", shape))

    def _weight(self, spec: WeightSpec) -> int:
        index = self._weight_index.get(spec.name)
        if index is None:
            index = self._weight_index[spec.name] = len(self._weights)
            self._weights.append(spec)
        elif self._weights[index] != spec:
            raise ValueError(f"{spec.name} is used as {spec}, earlier as {self._weights[index]}")
        return index

    def _value(self, name: str, cols: int, rows: Rows = "tokens", dtype: DType | None = None) -> Value:
        value = Value(len(self._values), name, rows, cols, dtype or self.dtype)
        self._values.append(value)
        return value

    def _record(
        self, attributes: Attributes, inputs: tuple[Value, ...], outputs: tuple[Value, ...], weights: tuple[int, ...]
    ) -> None:
        op = Op(attributes, tuple(x.id for x in inputs), tuple(x.id for x in outputs), weights, self._layer)
        check_op(op, self._values, self._weights, self.kv_cache)
        self._ops.append(op)


def _last(module: str) -> str:
    return module.rsplit(".", 1)[-1]

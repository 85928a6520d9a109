# SPDX-License-Identifier: Apache-2.0
"""The shape rule of every op, once: the builder applies it to each op it records, `check_program` to a whole program.

Errors are ValueErrors that name the op, its weights, what arrived and what the op takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from paged.program.ir import (
    AddRmsNorm,
    Attention,
    GatedLinear,
    KvCacheSpec,
    Linear,
    Op,
    Program,
    RmsNorm,
    Rope,
    RopeStoreKv,
    StoreKv,
    Value,
    WeightSpec,
)


class OpShapes:
    """One op with its operands resolved. Cheap: made and dropped for each check."""

    def __init__(self, op: Op, values: Sequence[Value], weights: Sequence[WeightSpec], cache: KvCacheSpec) -> None:
        self.op = op
        self.inputs = [values[i] for i in op.inputs]
        self.outputs = [values[i] for i in op.outputs]
        self.weights = [weights[i] for i in op.weights]
        self.cache = cache

    def fail(self, message: str) -> NoReturn:
        names = ", ".join(weight.name for weight in self.weights)
        raise ValueError(f"{self.op.kind}{f' with {names}' if names else ''}: {message}")

    def expect_counts(self, inputs: int, outputs: int, weights: int | None = None) -> None:
        found = (len(self.inputs), len(self.outputs), len(self.weights))
        expected = (inputs, outputs, len(self.weights) if weights is None else weights)
        if found != expected:
            self.fail(f"takes (inputs, outputs, weights) = {expected}, got {found}")

    def expect_weight(self, index: int, kind: str, shape: tuple[int, ...]) -> None:
        weight = self.weights[index]
        if (weight.kind, weight.shape) != (kind, shape):
            self.fail(f"{weight.name} is a {weight.kind} {list(weight.shape)}, expected a {kind} {list(shape)}")

    def expect_alike(self, *values: Value) -> None:
        first = values[0]
        for value in values[1:]:
            if (value.rows, value.cols, value.dtype) != (first.rows, first.cols, first.dtype):
                self.fail(f"{_describe(value)} and {_describe(first)} must have the same shape and dtype")

    def expect_cols(self, value: Value, cols: int) -> None:
        if value.cols != cols:
            self.fail(f"{_describe(value)} must have {cols} columns")

    def expect_token_rows(self) -> None:
        for value in (*self.inputs, *self.outputs):
            if value.rows != "tokens":
                self.fail(f"{_describe(value)} must have one row for each scheduled token")

    def expect_layer(self, layer: int) -> None:
        if not 0 <= layer < self.cache.num_layers:
            self.fail(f"layer {layer} is outside of the {self.cache.num_layers} layers of the KV cache")


def check_op(op: Op, values: Sequence[Value], weights: Sequence[WeightSpec], cache: KvCacheSpec) -> None:
    """Raises ValueError unless the op's operands fit together."""
    rule = _RULES.get(op.kind)
    if rule is None:
        raise ValueError(f"unknown op '{op.kind}'; known: {', '.join(_RULES)}")
    rule(OpShapes(op, values, weights, cache), op.attributes)


def check_program(program: Program) -> None:
    """Raises ValueError unless every op's shapes fit, every value is written once and before it is read, views lie
    inside their bases, and each layer's cache is stored before it is attended."""
    written: set[int] = set()
    stored: set[int] = set()
    for index, value in enumerate(program.values):
        if value.id != index:
            raise ValueError(f"value {index} carries the id {value.id}")
        _check_view(value, program.values)
    for op in program.ops:
        check_op(op, program.values, program.weights, program.kv_cache)
        for read in op.inputs:
            if _root(program.values[read], program.values) not in written:
                raise ValueError(f"{op.kind} reads {_describe(program.values[read])} before it is written")
        for result in op.outputs:
            if result in written or program.values[result].base is not None:
                raise ValueError(f"{op.kind} writes {_describe(program.values[result])} a second time")
            written.add(result)
        if isinstance(op.attributes, StoreKv | RopeStoreKv):
            stored.add(op.attributes.layer)
        if isinstance(op.attributes, Attention) and op.attributes.layer not in stored:
            raise ValueError(f"attention of layer {op.attributes.layer} comes before the layer's keys are stored")
    _check_logits(program, written)


def _check_view(value: Value, values: Sequence[Value]) -> None:
    if value.base is None:
        return
    base = values[value.base]
    alike = (base.rows, base.dtype, base.base) == (value.rows, value.dtype, None)
    if not alike or value.column < 0 or value.column + value.cols > base.cols:
        raise ValueError(f"{_describe(value)} from column {value.column} is no view of {_describe(base)}")


def _check_logits(program: Program, written: set[int]) -> None:
    logits = program.values[program.logits]
    if program.logits not in written or (logits.rows, logits.cols, logits.dtype) != (
        "logits", program.vocab_size, "float32",
    ):  # fmt: skip
        raise ValueError(f"the logits are {_describe(logits)}, expected [logits, {program.vocab_size}] float32")


def _root(value: Value, values: Sequence[Value]) -> int:
    return value.id if value.base is None else values[value.base].id


def _describe(value: Value) -> str:
    return f"{value.name} [{value.rows}, {value.cols}] {value.dtype}"


def _embedding(shapes: OpShapes, _: Any) -> None:
    shapes.expect_counts(0, 1, 1)
    shapes.expect_token_rows()
    vocab_size = shapes.weights[0].shape[0]
    shapes.expect_weight(0, "matrix", (vocab_size, shapes.outputs[0].cols))


def _linear(shapes: OpShapes, linear: Linear) -> None:
    parts = linear.num_parts
    with_bias = len(shapes.weights) == 2 * parts
    shapes.expect_counts(1, 1, 2 * parts if with_bias else parts)
    x, out = shapes.inputs[0], shapes.outputs[0]
    features = 0
    for part in range(parts):
        rows = shapes.weights[part].shape[0]
        shapes.expect_weight(part, "matrix", (rows, x.cols))
        if with_bias:
            shapes.expect_weight(parts + part, "vector", (rows,))
        features += rows
    shapes.expect_cols(out, features)
    if x.rows != out.rows:
        shapes.fail(f"{_describe(x)} and {_describe(out)} must have the same rows")


def _rms_norm(shapes: OpShapes, norm: RmsNorm) -> None:
    shapes.expect_counts(1, 1, 1)
    shapes.expect_alike(shapes.inputs[0], shapes.outputs[0])
    shapes.expect_weight(0, "vector", (norm.width,))
    if shapes.inputs[0].cols % norm.width:
        shapes.fail(f"{_describe(shapes.inputs[0])} does not split into groups of {norm.width} columns")


def _add_rms_norm(shapes: OpShapes, _: AddRmsNorm) -> None:
    shapes.expect_counts(2, 2, 1)
    shapes.expect_alike(*shapes.inputs, *shapes.outputs)
    shapes.expect_weight(0, "vector", (shapes.inputs[0].cols,))


def _two_alike(shapes: OpShapes, _: Any) -> None:
    shapes.expect_counts(2, 1, 0)
    shapes.expect_alike(*shapes.inputs, *shapes.outputs)


def _one_alike(shapes: OpShapes, _: Any) -> None:
    shapes.expect_counts(1, 1, 0)
    shapes.expect_alike(*shapes.inputs, *shapes.outputs)


def _rope(shapes: OpShapes, rope: Rope) -> None:
    shapes.expect_counts(1, 1, 1)
    shapes.expect_alike(shapes.inputs[0], shapes.outputs[0])
    _expect_rotation(shapes, rope)


def _store_kv(shapes: OpShapes, store: StoreKv) -> None:
    shapes.expect_counts(2, 0, 0)
    shapes.expect_alike(*shapes.inputs)
    _expect_cache(shapes, shapes.inputs[0], store.layer)


def _rope_store_kv(shapes: OpShapes, rope: RopeStoreKv) -> None:
    shapes.expect_counts(3, 1, 3 if len(shapes.weights) > 1 else 1)
    for norm in range(1, len(shapes.weights)):
        shapes.expect_weight(norm, "vector", (rope.head_dim,))
    shapes.expect_alike(shapes.inputs[0], shapes.outputs[0])
    shapes.expect_alike(shapes.inputs[1], shapes.inputs[2])
    _expect_rotation(shapes, rope)
    _expect_cache(shapes, shapes.inputs[1], rope.layer)


def _attention(shapes: OpShapes, attention: Attention) -> None:
    shapes.expect_counts(1, 1, 1 if shapes.weights else 0)
    if shapes.weights:
        shapes.expect_weight(0, "vector", (attention.num_heads,))
    shapes.expect_alike(shapes.inputs[0], shapes.outputs[0])
    shapes.expect_token_rows()
    shapes.expect_layer(attention.layer)
    shapes.expect_cols(shapes.inputs[0], attention.num_heads * shapes.cache.head_dim)
    if attention.num_heads % shapes.cache.num_kv_heads:
        shapes.fail(f"{attention.num_heads} heads cannot share {shapes.cache.num_kv_heads} KV heads evenly")


def _gated_linear(shapes: OpShapes, _: GatedLinear) -> None:
    shapes.expect_counts(1, 2, 2)
    x, (out, products) = shapes.inputs[0], shapes.outputs
    for part in range(2):
        shapes.expect_weight(part, "matrix", (out.cols, x.cols))
    shapes.expect_cols(products, 2 * out.cols)
    if not x.rows == out.rows == products.rows or not x.dtype == out.dtype == products.dtype:
        shapes.fail(f"{_describe(x)}, {_describe(out)} and {_describe(products)} must have the same rows and dtype")


def _gather_rows(shapes: OpShapes, _: Any) -> None:
    shapes.expect_counts(1, 1, 0)
    x, out = shapes.inputs[0], shapes.outputs[0]
    if (x.rows, out.rows) != ("tokens", "logits") or (x.cols, x.dtype) != (out.cols, out.dtype):
        shapes.fail(f"takes token rows and gives logits rows of the same width, got {_describe(x)}, {_describe(out)}")


def _expect_rotation(shapes: OpShapes, rope: Rope | RopeStoreKv) -> None:
    shapes.expect_token_rows()
    shapes.expect_weight(0, "table", (shapes.weights[0].shape[0], rope.rotary_dim))
    if rope.rotary_dim % 2 or not 0 < rope.rotary_dim <= rope.head_dim:
        shapes.fail(f"rotary_dim {rope.rotary_dim} must be even and at most head_dim {rope.head_dim}")
    for value in shapes.inputs:
        if value.cols % rope.head_dim:
            shapes.fail(f"{_describe(value)} does not split into heads of {rope.head_dim}")


def _expect_cache(shapes: OpShapes, key: Value, layer: int) -> None:
    shapes.expect_token_rows()
    shapes.expect_layer(layer)
    shapes.expect_cols(key, shapes.cache.num_kv_heads * shapes.cache.head_dim)


_RULES: Mapping[str, Callable[[OpShapes, Any], None]] = MappingProxyType(
    {
        "embedding": _embedding,
        "linear": _linear,
        "rms_norm": _rms_norm,
        "add_rms_norm": _add_rms_norm,
        "add": _two_alike,
        "rope": _rope,
        "store_kv": _store_kv,
        "rope_store_kv": _rope_store_kv,
        "attention": _attention,
        "gated_activation": _two_alike,
        "gated_linear": _gated_linear,
        "gather_rows": _gather_rows,
        "softcap": _one_alike,
    }
)

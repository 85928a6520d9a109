# SPDX-License-Identifier: Apache-2.0
"""A program as a table for people: what `paged inspect --program` prints.

Rows are symbolic: T scheduled tokens, S rows that need logits. A layer that repeats an earlier one is folded into one
line with its totals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from paged.program.ir import ITEMSIZE, Op, Program, Value, WeightSpec
from paged.program.plan import Plan

_ROWS = {"tokens": "T", "logits": "S"}


def listing(
    program: Program,
    *,
    plan: Plan | None = None,
    seconds: Sequence[float] | None = None,
    weight_bytes: Mapping[str, int] | None = None,
) -> str:
    """The table. `seconds` is the measured time of each op; `weight_bytes` what a weight takes where it is packed, by
    default its elements in the program's dtype. Raises ValueError unless there is one time per op."""
    if seconds is not None and len(seconds) != len(program.ops):
        raise ValueError(f"expected one time for each of the {len(program.ops)} ops, got {len(seconds)}")
    table = _Table(program, seconds, weight_bytes or {})
    lines = [*_heading(program, plan), "", *_columns(table.rows()), "", table.totals()]
    return "\n".join(lines) + "\n"


class _Table:
    """The cells of a listing."""

    def __init__(self, program: Program, seconds: Sequence[float] | None, weight_bytes: Mapping[str, int]) -> None:
        self.program = program
        self.seconds = seconds
        self.weight_bytes = weight_bytes

    def rows(self) -> Iterator[list[str]]:
        header = ["#", "op", "output", "shape", "out B/row", "weights", "weight B", "attributes"]
        yield header if self.seconds is None else [*header, "µs", "share"]
        first_like: dict[tuple[object, ...], int | None] = {}
        groups = []  # (layer, the layer it repeats or None, indices of its ops)
        for layer, members in groupby(range(len(self.program.ops)), lambda index: self.program.ops[index].layer):
            indices = list(members)
            model = first_like.setdefault(tuple(self._signature(index) for index in indices), layer)
            groups.append((layer, None if model == layer else model, indices))
        for model, run in groupby(groups, lambda group: group[1]):
            if model is None:
                for layer, _, indices in run:
                    yield from self._layer_rows(layer, indices)
            else:
                yield self._folded_row(list(run), model)

    def totals(self) -> str:
        used = self._weights(self.program.ops)
        text = f"{len(self.program.ops)} ops, {len(used)} weights of {sum(map(self._weight_bytes, used)):,} bytes"
        return text if self.seconds is None else f"{text}, {1e6 * sum(self.seconds):,.1f} µs"

    def _signature(self, index: int) -> tuple[object, ...]:
        """Equal for ops that differ in nothing but the layer."""
        op = self.program.ops[index]
        weights = tuple((w.kind, w.shape, w.offset, w.rope, self._weight_bytes(w)) for w in self._weights([op]))
        shapes = tuple((v.rows, v.cols, v.dtype) for v in self._values(op.inputs + op.outputs))
        attributes = tuple(getattr(op.attributes, f.name) for f in _fields(op, hidden=("layer",)))
        return (op.kind, attributes, weights, shapes)

    def _layer_rows(self, layer: int | None, indices: list[int]) -> Iterator[list[str]]:
        if layer is not None:
            yield ["", f"layer {layer}", *[""] * (6 if self.seconds is None else 8)]
        yield from (self._op_row(index) for index in indices)

    def _op_row(self, index: int) -> list[str]:
        op = self.program.ops[index]
        outputs = self._values(op.outputs)
        weights = self._weights([op])
        cells = [
            str(index),
            op.kind,
            ", ".join(value.name for value in outputs) or "KV cache",
            ", ".join(f"[{_ROWS[value.rows]}, {value.cols}]" for value in outputs),
            f"{sum(value.cols * ITEMSIZE[value.dtype] for value in outputs):,}",
            ", ".join(f"{_short(weight.name)} {list(weight.shape)}" for weight in weights),
            f"{sum(map(self._weight_bytes, weights)):,}" if weights else "",
            _attributes(op),
        ]
        return cells + self._timing([index])

    def _folded_row(self, groups: list[tuple[int | None, int | None, list[int]]], model: int) -> list[str]:
        indices = [index for _, _, members in groups for index in members]
        first, last = groups[0][0], groups[-1][0]
        text = f"layer {first} as {model}" if first == last else f"layers {first}..{last} as {model}"
        weights = self._weights([self.program.ops[index] for index in indices])
        num_bytes = f"{sum(map(self._weight_bytes, weights)):,}"
        return [f"{indices[0]}..{indices[-1]}", text, "", "", "", "", num_bytes, "", *self._timing(indices)]

    def _timing(self, indices: list[int]) -> list[str]:
        if self.seconds is None:
            return []
        spent, total = sum(self.seconds[index] for index in indices), sum(self.seconds)
        return [f"{1e6 * spent:,.1f}", f"{100.0 * spent / total if total else 0.0:.1f} %"]

    def _values(self, ids: tuple[int, ...]) -> list[Value]:
        return [self.program.values[value] for value in ids]

    def _weights(self, ops: Sequence[Op]) -> list[WeightSpec]:
        """What the ops read, each once."""
        return [self.program.weights[weight] for weight in dict.fromkeys(weight for op in ops for weight in op.weights)]

    def _weight_bytes(self, weight: WeightSpec) -> int:
        elements = 1
        for size in weight.shape:
            elements *= size
        itemsize = ITEMSIZE[self.program.dtype] if weight.kind == "matrix" else 4
        return self.weight_bytes.get(weight.name, elements * itemsize)


def _heading(program: Program, plan: Plan | None) -> list[str]:
    cache = program.kv_cache
    lines = [
        f"program in {program.dtype}: T scheduled tokens, S rows that need logits",
        f"KV cache: {cache.num_layers} layers x {cache.num_kv_heads} KV heads x {cache.head_dim} x 2 elements a token, "
        f"in {program.kv_cache_dtype}: {program.kv_bytes_per_token:,} bytes",
    ]
    if plan is not None:
        limits = f"T <= {plan.max_tokens:,}, S <= {plan.max_logits_rows:,}"
        lines.append(f"activations: one arena of {plan.arena_bytes:,} bytes for {limits}")
    return lines


def _columns(rows: Iterator[list[str]]) -> Iterator[str]:
    """Numbers to the right, words to the left."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    right = {0, 4, 6, 8, 9}
    for row in table:
        cells = (
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def _short(name: str) -> str:
    """The module's own name: q_proj of model.layers.3.self_attn.q_proj.weight."""
    parts = name.removesuffix(".weight").split(".")
    return ".".join(parts[-2:]) if parts[-1] == "bias" or name.startswith("rope_table") else parts[-1]


def _fields(op: Op, hidden: tuple[str, ...]) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(op.attributes) if field.name not in hidden]


def _attributes(op: Op) -> str:
    """Those that say more than the op, its layer and its weights do."""
    shown = {field.name: getattr(op.attributes, field.name) for field in _fields(op, hidden=("layer", "num_parts"))}
    defaults = {field.name: field.default for field in dataclasses.fields(op.attributes)}
    return ", ".join(f"{name}={_number(value)}" for name, value in shown.items() if value != defaults[name])


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)

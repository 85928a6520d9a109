# SPDX-License-Identifier: Apache-2.0
"""Passes: each takes a program and returns one that computes the same logits with less work. `fuse` applies them all.

None of them changes what a row computes, only where and when, so the unfused program is the test of the fused one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from paged.program.ir import (
    Add,
    AddRmsNorm,
    Attention,
    GatedActivation,
    GatedLinear,
    GatherRows,
    Linear,
    Op,
    Program,
    RmsNorm,
    Rope,
    RopeStoreKv,
    StoreKv,
    Value,
)
from paged.program.rewrite import consumers, producers, rebuild

Pass = Callable[[Program], Program]

_ROW_WISE = frozenset({"linear", "rms_norm", "add_rms_norm", "add", "gated_activation", "gated_linear", "softcap"})


def fuse(program: Program) -> Program:
    """The program as backends run it."""
    for apply in PASSES:
        program = apply(program)
    return program


def gather_early(program: Program) -> Program:
    """Drops the rows that need no logits as soon as nothing but row-wise ops is left: after the last attention. In a
    prefill that saves most of the last layer."""
    narrow = _narrow_ops(program)
    values = {value.id: value for value in program.values}
    ops: list[Op] = []
    short: dict[int, int] = {}  # value of token rows -> the value that holds its logits rows

    def shortened(x: int, layer: int | None) -> int:
        if x not in short:
            short[x] = _gathered(values, values[x])
            ops.append(Op(GatherRows(), (x,), (short[x],), layer=layer))
        return short[x]

    for index, op in enumerate(program.ops):
        if index in narrow:
            ops.append(replace(op, inputs=tuple(shortened(x, op.layer) for x in op.inputs)))
            for out in (value for value in program.values if value.id in op.outputs or value.base in op.outputs):
                values[out.id] = replace(out, rows="logits")
                short[out.id] = out.id
        elif isinstance(op.attributes, GatherRows):
            short[op.outputs[0]] = shortened(op.inputs[0], op.layer)
        else:
            inputs = tuple(short.get(x, x) if values[x].rows == "logits" else x for x in op.inputs)
            ops.append(op if inputs == op.inputs else replace(op, inputs=inputs))
    return rebuild(program, ops, values.values(), short.get(program.logits, program.logits))


def merge_linears(program: Program) -> Program:
    """Linears that share their input (q, k, v; gate, up) become one linear of several parts; what they wrote become
    views of its columns."""
    groups: dict[tuple[int, bool, str], list[int]] = {}
    for index, op in enumerate(program.ops):
        if op.attributes == Linear(1) and op.outputs[0] != program.logits:
            key = (op.inputs[0], len(op.weights) == 2, program.values[op.outputs[0]].dtype)
            groups.setdefault(key, []).append(index)
    values = {value.id: value for value in program.values}
    ops: list[Op | None] = list(program.ops)
    for indices in groups.values():
        if len(indices) > 1:
            ops[indices[0]] = _merged(values, [program.ops[index] for index in indices])
            for index in indices[1:]:
                ops[index] = None
    return rebuild(program, [op for op in ops if op is not None], values.values())


def fuse_add_rms_norm(program: Program) -> Program:
    """add followed by rms_norm of the whole row becomes add_rms_norm, which still writes the sum."""
    readers = consumers(program)
    ops: list[Op | None] = list(program.ops)
    for index, op in enumerate(program.ops):
        if not isinstance(op.attributes, Add):
            continue
        total = program.values[op.outputs[0]]
        for reader in readers[total.id]:
            norm = program.ops[reader] if reader < len(program.ops) else op
            if isinstance(norm.attributes, RmsNorm) and norm.attributes.width == total.cols:
                fused = AddRmsNorm(norm.attributes.eps)
                ops[index] = replace(op, attributes=fused, outputs=(total.id, *norm.outputs), weights=norm.weights)
                ops[reader] = None
                break
    return rebuild(program, [op for op in ops if op is not None], program.values)


def fuse_rope_store_kv(program: Program) -> Program:
    """rope of q, rope of k and store_kv become one op; rotated keys go straight to the cache."""
    readers, writer = consumers(program), producers(program)
    queries = {op.attributes.layer: op.inputs[0] for op in program.ops if isinstance(op.attributes, Attention)}
    ops: list[Op | None] = list(program.ops)
    for index, store in enumerate(program.ops):
        if not isinstance(store.attributes, StoreKv) or store.attributes.layer not in queries:
            continue
        layer = store.attributes.layer
        q_at, k_at = writer.get(queries[layer], -1), writer.get(store.inputs[0], -1)
        rope = _shared_rope(program, readers, (q_at, k_at, index))
        if rope is not None:
            q_rope, k_rope = program.ops[q_at], program.ops[k_at]
            ops[index] = replace(
                q_rope,
                attributes=RopeStoreKv(layer, rope.head_dim, rope.rotary_dim, rope.interleaved),
                inputs=(q_rope.inputs[0], k_rope.inputs[0], store.inputs[1]),
            )
            ops[q_at] = ops[k_at] = None
    return rebuild(program, [op for op in ops if op is not None], program.values)


def fuse_head_norms(program: Program) -> Program:
    """rms_norm of q's heads and of k's become a part of the rope_store_kv that alone reads them (Qwen3, Gemma 3)."""
    readers, writer = consumers(program), producers(program)
    ops: list[Op | None] = list(program.ops)
    for index, op in enumerate(program.ops):
        rope = op.attributes
        if not isinstance(rope, RopeStoreKv) or len(op.weights) > 1:
            continue
        at = [writer.get(x, -1) for x in op.inputs[:2]]
        if min(at) < 0:
            continue
        norms = [program.ops[i] for i in at]
        kinds = {norm.attributes for norm in norms}
        alone = all(readers[x] == [index] for x in op.inputs[:2]) and readers[norms[1].inputs[0]] == [at[1]]
        if not alone or len(kinds) > 1 or not isinstance(kind := kinds.pop(), RmsNorm) or kind.width != rope.head_dim:
            continue
        ops[index] = replace(
            op, attributes=replace(rope, eps=kind.eps), weights=op.weights + norms[0].weights + norms[1].weights,
            inputs=(norms[0].inputs[0], norms[1].inputs[0], op.inputs[2]),
        )  # fmt: skip
        ops[at[0]] = ops[at[1]] = None
    return rebuild(program, [op for op in ops if op is not None], program.values)


def fuse_gated_linear(program: Program) -> Program:
    """A linear of two parts whose results are read by one gated_activation alone becomes one op with it."""
    readers, writer = consumers(program), producers(program)
    ops: list[Op | None] = list(program.ops)
    for index, op in enumerate(program.ops):
        if not isinstance(op.attributes, GatedActivation):
            continue
        gate, up = (program.values[x] for x in op.inputs)
        if gate.base is None or gate.base != up.base or (gate.column, up.column) != (0, gate.cols):
            continue
        at = writer[gate.base]
        linear = program.ops[at]
        alone = readers[gate.id] == readers[up.id] == [index] and not readers[gate.base]
        if alone and linear.attributes == Linear(2) and len(linear.weights) == 2:
            outputs = (*op.outputs, gate.base)
            ops[index] = replace(linear, attributes=GatedLinear(op.attributes.activation), outputs=outputs)
            ops[at] = None
    return rebuild(program, [op for op in ops if op is not None], program.values)


PASSES: tuple[Pass, ...] = (
    gather_early, merge_linears, fuse_add_rms_norm, fuse_rope_store_kv, fuse_head_norms, fuse_gated_linear,
)  # fmt: skip


def _narrow_ops(program: Program) -> set[int]:
    """Indices of row-wise ops whose results are needed at the logits rows only."""
    wide: set[int] = set()
    narrow: set[int] = set()
    for index in range(len(program.ops) - 1, -1, -1):
        op = program.ops[index]
        on_tokens = all(program.values[out].rows == "tokens" for out in op.outputs)
        if isinstance(op.attributes, GatherRows):
            continue
        if op.kind in _ROW_WISE and on_tokens and wide.isdisjoint(op.outputs):
            narrow.add(index)
        else:
            wide.update(op.inputs)
            wide.update(base for x in op.inputs if (base := program.values[x].base) is not None)
    return narrow


def _gathered(values: dict[int, Value], x: Value) -> int:
    new_id = max(values) + 1
    values[new_id] = replace(x, id=new_id, name=f"{x.name}_rows", rows="logits", base=None, column=0)
    return new_id


def _merged(values: dict[int, Value], linears: list[Op]) -> Op:
    """One linear of several parts; turns the results of the old ones into views of the new one's."""
    outs = [values[op.outputs[0]] for op in linears]
    base = replace(outs[0], id=max(values) + 1, name="+".join(out.name for out in outs), cols=sum(o.cols for o in outs))
    values[base.id] = base
    column = 0
    for out in outs:
        values[out.id] = replace(out, base=base.id, column=column)
        column += out.cols
    matrices = tuple(op.weights[0] for op in linears)
    biases = tuple(bias for op in linears for bias in op.weights[1:])
    return replace(linears[0], attributes=Linear(len(linears)), outputs=(base.id,), weights=matrices + biases)


def _shared_rope(program: Program, readers: dict[int, list[int]], at: tuple[int, int, int]) -> Rope | None:
    """The rotation of q and k, written at at[0] and at[1], if the store at at[2] can do both: they are alike, come
    before it, only it reads the rotated keys, and nobody reads the rotated queries before it."""
    q_at, k_at, store_at = at
    if min(at) < 0 or q_at == k_at or max(q_at, k_at) > store_at:
        return None
    q_rope, k_rope = program.ops[q_at], program.ops[k_at]
    rope = q_rope.attributes
    if not isinstance(rope, Rope) or (rope, q_rope.weights) != (k_rope.attributes, k_rope.weights):
        return None
    keys_private = readers[k_rope.outputs[0]] == [store_at]
    queries_later = all(reader > store_at for reader in readers[q_rope.outputs[0]])
    return rope if keys_private and queries_later else None

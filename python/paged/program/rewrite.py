# SPDX-License-Identifier: Apache-2.0
"""What every pass needs: who reads a value, and putting an edited op list back into a program."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from paged.program.ir import Op, Program, Value


def producers(program: Program) -> dict[int, int]:
    """The index of the op that writes each value; views are written by nobody."""
    return {value: index for index, op in enumerate(program.ops) for value in op.outputs}


def consumers(program: Program) -> dict[int, list[int]]:
    """The indices of the ops that read each value, in order. The result of the program counts as read by the end."""
    readers: dict[int, list[int]] = {value.id: [] for value in program.values}
    for index, op in enumerate(program.ops):
        for value in op.inputs:
            readers[value].append(index)
    readers[program.logits].append(len(program.ops))
    return readers


def rebuild(program: Program, ops: Sequence[Op], values: Iterable[Value], logits: int | None = None) -> Program:
    """The program with these ops. `values` may hold more than the ops use and new ids at will; what is left is
    numbered anew in the order it is written, views after their bases. No pass drops a weight."""
    by_id = {value.id: value for value in values}
    logits = program.logits if logits is None else logits
    read = {value for op in ops for value in op.inputs} | {logits}
    views: dict[int, list[int]] = {}
    for view in read:
        if (base := by_id[view].base) is not None:
            views.setdefault(base, []).append(view)
    order: list[int] = []
    for written in (value for op in ops for value in op.outputs):
        order += [written, *sorted(views.get(written, ()), key=lambda view: by_id[view].column)]
    new_id = {old: new for new, old in enumerate(order)}

    def renumber(value: Value) -> Value:
        number, base = new_id[value.id], None if value.base is None else new_id[value.base]
        return value if (number, base) == (value.id, value.base) else replace(value, id=number, base=base)

    def rewire(op: Op) -> Op:
        inputs, outputs = (tuple(new_id[value] for value in side) for side in (op.inputs, op.outputs))
        unchanged = (inputs, outputs) == (op.inputs, op.outputs)
        return op if unchanged else replace(op, inputs=inputs, outputs=outputs)

    return replace(
        program,
        ops=tuple(rewire(op) for op in ops),
        values=tuple(renumber(by_id[value]) for value in order),
        logits=new_id[logits],
    )

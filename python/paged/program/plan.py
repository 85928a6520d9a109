# SPDX-License-Identifier: Apache-2.0
"""Gives every value of a program its place in one arena.

Invariants: two values that are alive at the same op never overlap, but for a view and its base and for an op that may
write over its input; every buffer starts at a multiple of 64 bytes. Buffers are placed largest first at the lowest
offset that is free for their lifetime ("greedy by size", Pisarchyk & Lee 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from paged.program.ir import ITEMSIZE, DType, Op, Program, Rows, Value

ALIGNMENT = 64

# Which output may be written over which inputs; ops.h grants it.
_IN_PLACE: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "rms_norm": (0,),
        "add_rms_norm": (0,),
        "add": (0, 1),
        "rope": (0,),
        "rope_store_kv": (0,),
        "gated_activation": (0,),
        "softcap": (0,),
    }
)


@dataclass(frozen=True, slots=True)
class Placement:
    """Row r of the value starts at offset_bytes + r * row_stride * itemsize."""

    offset_bytes: int
    row_stride: int  # in elements
    cols: int
    rows: Rows
    dtype: DType


@dataclass(frozen=True, slots=True)
class Plan:
    """`placements[i]` belongs to value i. Good for steps of at most max_tokens tokens and max_logits_rows rows."""

    placements: tuple[Placement, ...]
    arena_bytes: int
    max_tokens: int
    max_logits_rows: int


@dataclass(slots=True)
class _Buffer:
    """A contiguous matrix that holds one value, its views, and what overwrites them. Alive from op `first` to `last`,
    both included."""

    value: Value
    first: int
    last: int
    members: list[tuple[Value, int]] = field(default_factory=list)  # with the column each starts at
    offset: int = 0


def plan(program: Program, *, max_tokens: int, max_logits_rows: int) -> Plan:
    """Raises ValueError unless 1 <= max_logits_rows <= max_tokens."""
    if not 1 <= max_logits_rows <= max_tokens:
        raise ValueError(f"expected 1 <= max_logits_rows <= max_tokens, got {max_logits_rows} and {max_tokens}")
    max_rows: dict[Rows, int] = {"tokens": max_tokens, "logits": max_logits_rows}
    buffers = _assign_buffers(program)
    sizes = [_aligned(max_rows[b.value.rows] * b.value.cols * ITEMSIZE[b.value.dtype]) for b in buffers]
    arena_bytes = _place(buffers, sizes)
    placements: list[Placement | None] = [None] * len(program.values)
    for buffer in buffers:
        itemsize = ITEMSIZE[buffer.value.dtype]
        for value, column in buffer.members:
            offset = buffer.offset + column * itemsize
            placements[value.id] = Placement(offset, buffer.value.cols, value.cols, value.rows, value.dtype)
    placed = tuple(placement for placement in placements if placement is not None)
    if len(placed) != len(program.values):
        raise ValueError("a value is neither written by an op nor a view of one that is")
    return Plan(placed, arena_bytes, max_tokens, max_logits_rows)


def last_uses(program: Program) -> list[int]:
    """For each value the index of the last op that reads it, or writes it if none does. The logits outlive all."""
    last = [-1] * len(program.values)
    for index, op in enumerate(program.ops):
        for value in (*op.inputs, *op.outputs):
            last[value] = index
    last[program.logits] = len(program.ops)
    return last


def _assign_buffers(program: Program) -> list[_Buffer]:
    last = last_uses(program)
    views: dict[int, list[Value]] = {}
    for value in program.values:
        if value.base is not None:
            views.setdefault(value.base, []).append(value)
    buffers: list[_Buffer] = []
    home: dict[int, tuple[_Buffer, int]] = {}  # value -> its buffer and column
    for index, op in enumerate(program.ops):
        for position, out in enumerate(op.outputs):
            value = program.values[out]
            place = _overwritable(program, op, index, home, last) if position == 0 else None
            if place is None:
                place = (_Buffer(value, index, index), 0)
                buffers.append(place[0])
            for member in (value, *views.get(out, ())):
                home[member.id] = (place[0], place[1] + member.column)
                place[0].members.append((member, place[1] + member.column))
                place[0].last = max(place[0].last, last[member.id])
    return buffers


def _overwritable(
    program: Program, op: Op, index: int, home: dict[int, tuple[_Buffer, int]], last: list[int]
) -> tuple[_Buffer, int] | None:
    """The place of an input that the op's first output may take: of the same shape, and nothing that overlaps it is
    read later or by another operand of this op."""
    out = program.values[op.outputs[0]]
    for position in _IN_PLACE.get(op.kind, ()):
        x = program.values[op.inputs[position]]
        if (x.rows, x.cols, x.dtype) != (out.rows, out.cols, out.dtype):
            continue
        buffer, column = home[x.id]
        others = op.inputs[:position] + op.inputs[position + 1 :]
        overlapping = [v for v, at in buffer.members if at < column + x.cols and column < at + v.cols]
        if all(last[v.id] <= index and v.id not in others for v in overlapping):
            return buffer, column
    return None


def _place(buffers: list[_Buffer], sizes: list[int]) -> int:
    """Sets the offsets; returns the end of the arena."""
    placed: list[int] = []
    end = 0
    for current in sorted(range(len(buffers)), key=lambda i: (-sizes[i], buffers[i].first)):
        buffer = buffers[current]
        rivals = [i for i in placed if buffers[i].first <= buffer.last and buffer.first <= buffers[i].last]
        offset = 0
        for rival in sorted(rivals, key=lambda i: buffers[i].offset):
            if offset + sizes[current] <= buffers[rival].offset:
                break
            offset = max(offset, buffers[rival].offset + sizes[rival])
        buffer.offset = offset
        placed.append(current)
        end = max(end, offset + sizes[current])
    return end


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT

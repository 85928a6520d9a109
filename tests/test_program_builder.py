# SPDX-License-Identifier: Apache-2.0
"""What does not fit together is refused while it is recorded, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from paged.program.builder import Builder
from paged.program.ir import Add, Attention, KvCacheSpec, Op, Program, Value, WeightSpec
from paged.program.rope_tables import RopeSpec
from paged.program.shapes import check_program


def make_builder() -> Builder:
    return Builder(KvCacheSpec(2, 1, 8), vocab_size=11, max_positions=32, dtype="float32")


def small_program() -> Program:
    b = make_builder()
    x = b.embedding("embed", 8)
    return b.finish(b.logits(b.add(x, b.attention(x, x, x, Attention(0, 1, 1.0))), "head"))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda b, x: b.rms_norm(x, "n", 1e-5, width=3), "rms_norm with n.weight: embed.* groups of 3 columns"),
        (lambda b, x: b.add(x, b.linear(x, "w", 6)), r"add: w \[tokens, 6\] float32 and embed \[tokens, 8\].* same"),
        (lambda b, x: b.rope(x, RopeSpec("default", 1e4, 16), 8), "rope with rope_table.0: rotary_dim 16"),
        (lambda b, x: b.rope(x, RopeSpec("default", 1e4, 3), 8), "rotary_dim 3 must be even"),
        (lambda b, x: b.rope(x, RopeSpec("default", 1e4, 4), 5), "does not split into heads of 5"),
        (lambda b, x: b.attention(x, x, x, Attention(2, 1, 1.0)), "layer 2 is outside of the 2 layers"),
        (lambda b, x: b.attention(x, x, x, Attention(0, 2, 1.0)), "must have 16 columns"),
        (lambda b, x: b.attention(x, b.linear(x, "k", 4), x, Attention(0, 1, 1.0)), "store_kv: .* must have the same"),
        (lambda b, x: b.gather_logits_rows(b.gather_logits_rows(x)), "takes token rows and gives logits rows"),
        (lambda b, x: b.rope(b.gather_logits_rows(x), RopeSpec("default", 1e4, 8), 8), "row for each scheduled token"),
        (lambda b, x: (b.linear(x, "w", 6), b.linear(b.linear(x, "u", 6), "w", 6)), r"w.weight is used as .*\(6, 6\)"),
        (lambda b, x: b.logits(x, "embed") and b.logits(b.linear(x, "w", 6), "embed"), "embed.weight is used as"),
    ],
)
def test_misfits_are_named(write: Callable[[Builder, Value], object], message: str) -> None:
    b = make_builder()
    with pytest.raises(ValueError, match=message):
        write(b, b.embedding("embed", 8))


def test_unknown_dtype() -> None:
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'int8'"):
        Builder(KvCacheSpec(1, 1, 8), vocab_size=11, max_positions=32, dtype="int8")  # type: ignore[arg-type]


def test_shared_weights_and_tables_are_recorded_once() -> None:
    b = make_builder()
    x = b.embedding("embed", 8)
    spec = RopeSpec("default", 1e4, 8)
    b.rope(b.rope(x, spec, 8), RopeSpec("default", 1e4, 8), 8)
    program = b.finish(b.logits(x, "embed"))
    assert program.weights == (
        WeightSpec("embed.weight", "matrix", (11, 8)),
        WeightSpec("rope_table.0", "table", (32, 8), rope=spec),
    )


def test_check_program_finds_broken_programs() -> None:
    program = small_program()
    check_program(program)
    first, store, attend, *rest = program.ops
    view = Value(len(program.values), "v", "tokens", 8, "float32", base=0, column=4)
    broken = [
        (replace(program, ops=(store, first, attend, *rest)), "before it is written"),
        (replace(program, ops=(first, attend, store, *rest)), "before the layer's keys are stored"),
        (replace(program, ops=(*program.ops, program.ops[-1])), "a second time"),
        (replace(program, ops=(*program.ops, Op(Add(), (0,), (0,)))), r"takes \(inputs, .* = \(2, 1, 0\)"),
        (replace(program, logits=0), "the logits are embed"),
        (replace(program, vocab_size=12), "expected .logits, 12."),
        (replace(program, values=program.values[::-1]), "carries the id"),
        (replace(program, values=(*program.values, view)), "no view"),
    ]
    for candidate, message in broken:
        with pytest.raises(ValueError, match=message):
            check_program(candidate)

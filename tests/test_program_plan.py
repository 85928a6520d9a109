# SPDX-License-Identifier: Apache-2.0
"""No two values that are alive together overlap in the arena, for models and for random programs."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paged.model_config import ModelConfig
from paged.models import record
from paged.program.builder import Builder
from paged.program.ir import ITEMSIZE, Attention, DType, KvCacheSpec, Op, Program, Value
from paged.program.passes import PASSES, fuse
from paged.program.plan import ALIGNMENT, Plan, plan
from paged.program.rope_tables import RopeSpec
from paged.program.shapes import check_program
from paged.torch_backend import TorchExecutor
from tiny_models import VARIANTS, tiny_model

ROPE = RopeSpec("default", 100.0, 4)

# What the header of the ops grants: the inputs that the first output may be written over.
IN_PLACE = {
    "rms_norm": {0},
    "add_rms_norm": {0},
    "add": {0, 1},
    "rope": {0},
    "rope_store_kv": {0},
    "gated_activation": {0},
    "softcap": {0},
}


def bytes_of(placed: Plan, value: int) -> set[int]:
    """Every byte of the arena that the value takes in the largest step."""
    place = placed.placements[value]
    itemsize = ITEMSIZE[place.dtype]
    pitch, width = place.row_stride * itemsize, place.cols * itemsize
    rows = placed.max_tokens if place.rows == "tokens" else placed.max_logits_rows
    return {place.offset_bytes + row * pitch + at for row in range(rows) for at in range(width)}


def check_plan(program: Program, placed: Plan) -> None:
    """Replays the program, remembering for each byte which value it holds: every read must find its own value."""
    holder: dict[int, int] = {}
    views: dict[int, list[Value]] = {}
    for value in program.values:
        views.setdefault(value.id if value.base is None else value.base, []).append(value)
    cells = {value.id: bytes_of(placed, value.id) for value in program.values}
    for op in program.ops:
        for value in op.inputs:
            owner = program.values[value].base
            owner = value if owner is None else owner
            assert all(holder[at] == owner for at in cells[value]), f"{op.kind} reads what was overwritten"
        for value in op.outputs:
            assert max(cells[value]) < placed.arena_bytes
            for at in cells[value]:
                holder[at] = value
        check_operands(op, placed, cells)
    assert all(holder[at] == program.logits for at in cells[program.logits])


def check_operands(op: Op, placed: Plan, cells: dict[int, set[int]]) -> None:
    """An op's results lie apart from each other and from its inputs, but for one input that it may write over."""
    operands = [(value, None) for value in op.outputs[1:]] + [(value, at) for at, value in enumerate(op.inputs)]
    overwritten = 0
    for out in op.outputs:
        for operand, at in operands:
            if operand != out and not cells[out].isdisjoint(cells[operand]):
                assert out == op.outputs[0]
                assert at in IN_PLACE.get(op.kind, ())
                assert placed.placements[out] == placed.placements[operand]
                overwritten += 1
    assert overwritten <= 1


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """A random walk through the builder: any op on any values at hand that fit."""
    dtype: DType = draw(st.sampled_from(["float32", "bfloat16"]))
    b = Builder(KvCacheSpec(4, 1, 4), vocab_size=7, max_positions=16, dtype=dtype)
    values = [b.embedding("embed", draw(st.sampled_from([4, 8])))]
    for at in range(draw(st.integers(1, 25))):
        x = draw(st.sampled_from(values))
        alike = [value for value in values if value.cols == x.cols]
        y = draw(st.sampled_from(alike))
        match draw(st.sampled_from(["linear", "two", "norm", "add", "gate", "cap", "attention", "rotary"])):
            case "linear":
                values.append(b.linear(x, f"w{at}", draw(st.sampled_from([4, 8, 12]))))
            case "two":
                values += [b.linear(x, f"w{at}a", 4), b.linear(x, f"w{at}b", 8)]
            case "norm":
                values.append(b.rms_norm(x, f"n{at}", 1e-5, width=draw(st.sampled_from([4, x.cols]))))
            case "add":
                values.append(b.add(x, y))
            case "gate":
                values.append(b.gated_activation(x, y, "silu"))
            case "cap":
                values.append(b.softcap(x, 2.0))
            case "attention" if x.cols == 4:
                values.append(b.attention(x, y, y, Attention(at % 4, 1, 1.0)))
            case "rotary" if x.cols == 4:
                values.append(b.attention(b.rope(x, ROPE, 4), b.rope(y, ROPE, 4), y, Attention(at % 4, 1, 1.0)))
    return b.finish(b.logits(draw(st.sampled_from(values)), "head"))


@settings(max_examples=150, deadline=None)
@given(programs(), st.sets(st.sampled_from(range(len(PASSES)))), st.integers(1, 5))
def test_random_programs(program: Program, chosen: set[int], max_tokens: int) -> None:
    for index in sorted(chosen):
        program = PASSES[index](program)
    check_program(program)
    check_plan(program, plan(program, max_tokens=max_tokens, max_logits_rows=1 + max_tokens // 2))


@pytest.mark.parametrize("name", ["llama", "qwen3-window-bias", "gemma3-softcap"])
@pytest.mark.parametrize("fused", [False, True])
def test_models(name: str, fused: bool) -> None:
    program = record(ModelConfig.from_hf(tiny_model(name).config), "float32")
    program = fuse(program) if fused else program
    placed = plan(program, max_tokens=3, max_logits_rows=2)
    check_plan(program, placed)
    whole_buffers = [place for place in placed.placements if place.row_stride == place.cols]
    assert all(place.offset_bytes % ALIGNMENT == 0 for place in whole_buffers)


@pytest.mark.parametrize("name", VARIANTS)
def test_running_in_the_arena_changes_no_bit(name: str) -> None:
    tiny = tiny_model(name)
    program = fuse(record(ModelConfig.from_hf(tiny.config), "float32"))
    token_ids = random.Random(2).choices(range(program.vocab_size), k=30)
    expected = TorchExecutor(program, tiny.weights).forward(token_ids)
    placed = plan(program, max_tokens=33, max_logits_rows=31)
    assert torch.equal(TorchExecutor(program, tiny.weights, plan=placed).forward(token_ids), expected)


def test_layers_reuse_the_arena() -> None:
    def arena_bytes(layers: int) -> int:
        config = ModelConfig.from_hf({**tiny_model("llama").config, "num_hidden_layers": layers})
        return plan(fuse(record(config, "float32")), max_tokens=64, max_logits_rows=4).arena_bytes

    assert arena_bytes(40) == arena_bytes(2)


def test_gate_is_written_in_place() -> None:
    program = record(ModelConfig.from_hf(tiny_model("qwen3").config), "bfloat16")
    placed = plan(program, max_tokens=8, max_logits_rows=8).placements
    for op in program.ops:
        if op.kind == "gated_activation":
            assert placed[op.outputs[0]].offset_bytes == placed[op.inputs[0]].offset_bytes


def test_sums_and_rotated_queries_are_written_in_place() -> None:
    program = fuse(record(ModelConfig.from_hf(tiny_model("qwen3").config), "bfloat16"))
    placed = plan(program, max_tokens=8, max_logits_rows=8).placements
    for op in program.ops:
        if op.kind in ("rope_store_kv", "add_rms_norm"):
            assert placed[op.outputs[0]].offset_bytes == placed[op.inputs[0]].offset_bytes


@pytest.mark.parametrize(("max_tokens", "max_logits_rows"), [(0, 0), (4, 5), (4, 0)])
def test_senseless_limits(max_tokens: int, max_logits_rows: int) -> None:
    program = record(ModelConfig.from_hf(tiny_model("llama").config), "float32")
    with pytest.raises(ValueError, match="1 <= max_logits_rows <= max_tokens"):
        plan(program, max_tokens=max_tokens, max_logits_rows=max_logits_rows)


def test_a_plan_is_for_its_limits_and_dtype() -> None:
    tiny = tiny_model("llama")
    program = fuse(record(ModelConfig.from_hf(tiny.config), "float32"))
    placed = plan(program, max_tokens=4, max_logits_rows=4)
    with pytest.raises(ValueError, match="the plan is for 4 tokens"):
        TorchExecutor(program, tiny.weights, plan=placed).forward(range(5))
    with pytest.raises(ValueError, match="the plan is for float32"):
        TorchExecutor(program, tiny.weights, plan=placed, dtype=torch.float64)

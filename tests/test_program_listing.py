# SPDX-License-Identifier: Apache-2.0
"""The listing names every op or the layer that stands for it, and its numbers add up."""

from __future__ import annotations

import re

import pytest

from paged.model_config import ModelConfig
from paged.models import record
from paged.program.ir import Program
from paged.program.listing import listing
from paged.program.passes import fuse
from paged.program.plan import plan
from tiny_models import tiny_model


def program_of(name: str, **keys: object) -> Program:
    return fuse(record(ModelConfig.from_hf({**tiny_model(name).config, **keys}), "bfloat16"))


def covered(text: str) -> list[int]:
    """The op numbers that the lines of a listing stand for."""
    numbers: list[int] = []
    for line in text.splitlines():
        if found := re.match(r" *(\d+)(?:\.\.(\d+))?  ", line):
            numbers += range(int(found[1]), int(found[2] or found[1]) + 1)
    return numbers


@pytest.mark.parametrize("name", ["llama", "qwen2-window", "gemma3"])
@pytest.mark.parametrize("layers", [1, 2, 3, 12])
def test_every_op_is_listed_once(name: str, layers: int) -> None:
    kinds = [("full_attention", "sliding_attention")[layer % 4 == 1] for layer in range(layers)]
    program = program_of(name, num_hidden_layers=layers, layer_types=kinds)
    assert covered(listing(program)) == list(range(len(program.ops)))


def test_equal_layers_are_folded() -> None:
    text = listing(program_of("llama", num_hidden_layers=12))
    assert "layers 2..10 as 1" in text
    assert len(text.splitlines()) < 50
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 4
    text = listing(program_of("gemma3", num_hidden_layers=12, layer_types=kinds))
    assert "layers 3..4 as 1" in text
    assert "layer 5 as 2" in text


def test_shapes_bytes_and_attributes() -> None:
    program = program_of("gemma3")
    text = listing(program, plan=plan(program, max_tokens=2048, max_logits_rows=32))
    assert re.search(r"T <= 2,048, S <= 32", text)
    assert re.search(r"linear +q_proj\+k_proj\+v_proj +\[T, 256\] +512 +q_proj \[128, 64\], k_proj \[64, 64\]", text)
    assert re.search(r"attention +attention +\[T, 128\].*num_heads=4, scale=0.204124, window=8", text)
    assert re.search(r"linear +logits +\[S, 320\] +1,280 +embed_tokens \[320, 64\] +40,960", text)
    packed = {"model.embed_tokens.weight": 77}
    assert re.search(r"embed_tokens \[320, 64\] +77\b", listing(program, weight_bytes=packed))


def test_times_and_shares_add_up() -> None:
    program = program_of("llama", num_hidden_layers=8)
    text = listing(program, seconds=[1e-6 * (1 + index % 5) for index in range(len(program.ops))])
    cells = [re.search(r" ([\d,.]+) +([\d.]+) %$", line) for line in text.splitlines()]
    total = sum(float(cell[1].replace(",", "")) for cell in cells if cell)
    assert f"{total:,.1f} µs" in text.splitlines()[-1]
    assert sum(float(cell[2]) for cell in cells if cell) == pytest.approx(100.0, abs=3.0)


def test_one_time_per_op() -> None:
    program = program_of("llama")
    with pytest.raises(ValueError, match=f"one time for each of the {len(program.ops)} ops, got 1"):
        listing(program, seconds=[1.0])

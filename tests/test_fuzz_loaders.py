# SPDX-License-Identifier: Apache-2.0
"""Every damaged or hostile model file ends in a named exception, in bounded time and memory."""

from __future__ import annotations

import copy
import json
import os
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz_loaders import TARGETS, run, seeds

NUMBERS = [0, 1, 127, 128, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1]
PATCHES = [struct.pack("<Q", n) for n in NUMBERS] + [struct.pack("<I", n % 2**32) for n in NUMBERS]
PATCHES += [
    b"",
    b"\x00",
    b"\xff" * 8,
    b"{",
    b'"',
    b"]",
    struct.pack("<f", float("nan")),
    struct.pack("<f", float("inf")),
]


@st.composite
def damaged(draw: st.DrawFn, target: str) -> bytes:
    """A whole file with pieces cut, doubled, moved or overwritten."""
    data = draw(st.sampled_from(seeds(target)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 64)))
        piece = draw(
            st.sampled_from([data[start:end] * 2, data[:start][-64:]])
            | st.sampled_from(PATCHES)
            | st.binary(max_size=12)
        )
        data = data[:start] + piece + data[end:]
        if draw(st.integers(0, 9)) == 0:
            data = data[: draw(st.integers(0, len(data)))]
    return data


VALUES = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        1,
        2,
        3,
        7,
        1 << 24,
        (1 << 24) + 1,
        2**31,
        2**63,
        10**400,
        1.5,
        -0.0,
        float("nan"),
        float("inf"),
        1e-320,
        "",
        "x",
        "</s>",
        "\ud800",
        "x" * 70_000,
        [],
        {},
        [[]],
        [None],
        {"content": 3},
        "llama3",
        "yarn",
        [0] * 1000,
        "{{ 1 }}",
        "{%",
    ],
)


@st.composite
def changed(draw: st.DrawFn, target: str) -> bytes:
    """A JSON file with some values replaced by others, dropped or renamed."""
    content = json.loads(draw(st.sampled_from(seeds(target))))
    for _ in range(draw(st.integers(1, 3))):
        parent, key = _place(draw, content)
        if draw(st.booleans()) or isinstance(parent, list):
            parent[key] = copy.deepcopy(draw(VALUES))
        else:
            parent[draw(st.sampled_from([*parent, "x", ""]))] = parent.pop(key)
    return json.dumps(content).encode()


def _place(draw: st.DrawFn, content: Any) -> tuple[Any, Any]:
    """A container somewhere inside and one of its keys."""
    parent = content
    while True:
        keys = list(parent) if isinstance(parent, dict) else list(range(min(len(parent), 50)))
        key = draw(st.sampled_from(keys))
        inner = parent[key]
        if not isinstance(inner, dict | list) or not inner or draw(st.integers(0, 3)) == 0:
            return parent, key
        parent = inner


@pytest.mark.parametrize("target", TARGETS)
def test_the_seeds_are_whole(target: str) -> None:
    for seed in seeds(target):
        assert run(target, seed) in ((None,) if target != "template" else ("ChatTemplateError",))


FEW = settings(
    max_examples=int(os.environ.get("PAGED_FUZZ_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_files(target: str) -> None:
    refused = set()

    @FEW
    @given(damaged(target))
    def attempt(data: bytes) -> None:
        refused.add(run(target, data))

    attempt()
    assert refused - {None}, "nothing was damaged enough"


@pytest.mark.parametrize("target", ["config_json", "tokenizer_json", "tokenizer_config"])
def test_other_values_in_json(target: str) -> None:
    @FEW
    @given(changed(target))
    def attempt(data: bytes) -> None:
        run(target, data)

    attempt()


def _deep(opening: bytes, closing: bytes, count: int = 200_000) -> bytes:
    return opening * count + closing * count


@pytest.mark.parametrize("target", ["config_json", "tokenizer_json", "tokenizer_config"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'{"a": 1, "a": 2}',
        _deep(b'{"a":', b"}"),
        _deep(b"[", b"]"),
        b'{"a":' + b"9" * 10_000 + b"}",
    ],
    ids=["empty", "not-utf8", "null", "list", "twice", "deep-objects", "deep-lists", "long-number"],
)
def test_json_that_is_none(target: str, data: bytes) -> None:
    assert run(target, data) == "CheckpointError"


def test_a_bomb_of_tokens() -> None:
    """An id far out would make a table of gigabytes."""
    content = json.loads(seeds("tokenizer_json")[0])
    content["model"]["vocab"]["bomb"] = (1 << 32) - 2
    assert run("tokenizer_json", json.dumps(content).encode()) == "CheckpointError"
    entries = {str((1 << 22) - 1): {"content": "x"}, "9" * 5000: {"content": "y"}}
    for key, entry in entries.items():
        run("tokenizer_config", json.dumps({"added_tokens_decoder": {key: entry}}).encode())


def test_a_piece_that_is_no_text() -> None:
    """Found by atheris."""
    seed = seeds("sentencepiece_model")[0]
    piece = seed.index("▁hello".encode())
    assert run("sentencepiece_model", seed[: piece + 3] + b"\xf7" + seed[piece + 4 :]) == "CheckpointError"

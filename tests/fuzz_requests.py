# SPDX-License-Identifier: Apache-2.0
"""Targets for fuzzing what an application may call: arguments of any kind in, an answer or a named exception out, and
the engine goes on.

test_fuzz_requests.py drives them with hypothesis. For a coverage-guided run of any length (pip install atheris):

    python tests/fuzz_requests.py TARGET [-max_total_time=600] [folder for what is found]
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import paged
from fuzz_loaders import _tokenizer_seed
from tiny_models import tiny_model

VOCAB = 320
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 4, "ignore_eos": True}
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ tools }}"


class HostileError(Exception):
    """Of an argument's own code: it reaches who passed the argument."""


def _raise(*_: object, **__: object) -> Any:
    raise HostileError


_METHODS = ("len", "iter", "getitem", "bool", "index", "int", "float", "eq", "lt", "le", "repr", "str", "call")
Hostile = type("Hostile", (), {"__hash__": object.__hash__, **{f"__{name}__": _raise for name in _METHODS}})
HostileInt = type("HostileInt", (int,), {"__le__": _raise, "__ge__": _raise, "__repr__": _raise})
WrongLength = type("WrongLength", (list,), {"__len__": lambda _: 10**6})

NAMED = (TypeError, ValueError, HostileError, paged.RequestError, TimeoutError)

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2**31 - 1, 2**31, 2**32, -(2**31) - 1, 2**63, 2**64, 10**30, 10**5000,
    0.5, 1.5, -0.0, 1e-320, 1e308, 1e300, -1e300, float("nan"), float("inf"), -float("inf"), 1j,
    "", "a", "\ud800", "\x00", "a\udfff", "🎉" * 3, "x" * 3000, b"", b"abc", bytearray(b"ab"), memoryview(b"abc"),
    [], (), {}, set(), frozenset({1}), range(3), range(10**6), [[]], [None], [1, "a"], ["a", 1], {"a": 1}, {1: "a"},
    [float("nan")], [2**40], [True], [-1], [VOCAB], ["\ud800"], [["a"]], [[1], [2]], object(), object, len, json, ...,
    Hostile(), [Hostile()], HostileInt(3), [HostileInt(3)], WrongLength([1]), iter([1]), (i for i in (1, 2)),
    np.float64(0.5), np.float32("nan"), np.int32(1), np.int64(2**40), np.bool_(True), np.zeros(3, np.int32),
    np.arange(6, dtype=np.int64)[::-2], np.zeros((2, 3), np.int32), np.array(1), np.array(["a"]), np.array([None]),
    np.zeros(0, np.int32), np.arange(3, dtype=">i4"), np.zeros(2, np.complex64), lambda *_: None, _raise, Exception,
]  # fmt: skip
ANYTHING = st.sampled_from(ODD) | st.recursive(
    st.integers() | st.floats() | st.text(st.characters(), max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
IDS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20)
PROMPT = IDS | st.text(max_size=20) | ANYTHING
_NUMBERS = st.floats(0.01, 1.0) | st.integers(0, 3)


def _keywords(fields: dict[str, Any], at_most: int) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the fields, each with a value of its own kind or of any."""
    names = st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=at_most, unique=True)
    return names.flatmap(lambda chosen: st.fixed_dictionaries({name: fields[name] | ANYTHING for name in chosen}))


def _of(kind: type) -> dict[str, Any]:
    return {field.name: _NUMBERS | IDS | st.text(max_size=3) for field in dataclasses.fields(kind)}


def sampling(llm: paged.LLM, keywords: dict[str, Any]) -> None:
    params = paged.SamplingParams(**{**GREEDY, **keywords})
    llm.submit([1, 2], params).result(60)


def structured(llm: paged.LLM, keywords: dict[str, Any]) -> None:
    params = paged.StructuredOutputsParams(**keywords)
    llm.submit([1, 2], paged.SamplingParams(**GREEDY, structured_outputs=params)).result(60)


def submit(llm: paged.LLM, keywords: dict[str, Any]) -> None:
    arguments = {"prompt": [1], "sampling_params": paged.SamplingParams(**GREEDY), **keywords}
    with llm.submit(**arguments) as handle:
        handle.result(60)


def generate(llm: paged.LLM, keywords: dict[str, Any]) -> None:
    llm.generate(**{"prompts": [[1], [2]], "sampling_params": paged.SamplingParams(**GREEDY), **keywords})


def chat(llm: paged.LLM, keywords: dict[str, Any]) -> None:
    llm.chat(
        **{"messages": [{"role": "user", "content": "a"}], "sampling_params": paged.SamplingParams(**GREEDY)} | keywords
    )


def score(llm: paged.LLM, keywords: dict[str, Any]) -> None:
    llm.score(**{"pairs": [([1], [2])], "use_tqdm": False, **keywords})


def beams(llm: paged.LLM, keywords: dict[str, Any]) -> None:
    own = {name: keywords.pop(name) for name in list(keywords) if name not in ("prompts", "priority")}
    params = paged.BeamSearchParams(**{"beam_width": 2, "max_tokens": 2, **own})
    paged.beam_search(llm, **{"prompts": [[1]], "params": params, **keywords})


def handle(llm: paged.LLM, keywords: dict[str, Any]) -> None:
    request = llm.submit([1], paged.SamplingParams(**GREEDY))
    if "callback" in keywords:
        request.add_done_callback(keywords["callback"])
    request.result(keywords.get("timeout", 60))


def options(llm: paged.LLM, keywords: dict[str, Any]) -> None:
    with paged.LLM(llm.folder, **{"num_threads": 1, "dtype": "float32", **keywords}) as other:  # type: ignore[attr-defined]
        other.submit([1], paged.SamplingParams(**GREEDY)).result(60)


Target = Callable[[paged.LLM, dict[str, Any]], None]
_OPTIONS = [name for name in inspect.signature(paged.LLM).parameters if name not in ("model", "num_threads", "device")]
_SUBMIT = {"prompt": PROMPT, "sampling_params": ANYTHING, "priority": _NUMBERS, "on_chunk": ANYTHING}
_GENERATE = {
    "prompts": st.lists(PROMPT, max_size=4) | PROMPT, "sampling_params": ANYTHING, "priority": _NUMBERS,
    "use_tqdm": st.just(False),
}  # fmt: skip
_SCORE = {"pairs": st.lists(st.tuples(PROMPT, PROMPT) | ANYTHING, max_size=3) | ANYTHING, "priority": _NUMBERS}
_BEAMS = {**_of(paged.BeamSearchParams), "prompts": st.lists(PROMPT, max_size=3) | PROMPT, "priority": _NUMBERS}
_CHAT = {"messages": ANYTHING, "tools": ANYTHING, "sampling_params": ANYTHING}
TARGETS: dict[str, tuple[Target, st.SearchStrategy[dict[str, Any]]]] = {
    "sampling": (sampling, _keywords(_of(paged.SamplingParams), 3)),
    "structured": (structured, _keywords(_of(paged.StructuredOutputsParams), 1)),
    "submit": (submit, _keywords(_SUBMIT, 2)),
    "generate": (generate, _keywords(_GENERATE, 2)),
    "chat": (chat, _keywords(_CHAT, 2)),
    "score": (score, _keywords(_SCORE, 2)),
    "beams": (beams, _keywords(_BEAMS, 2)),
    "handle": (handle, _keywords({"timeout": _NUMBERS, "callback": ANYTHING}, 2)),
    "options": (options, _keywords(dict.fromkeys(_OPTIONS, _NUMBERS), 1)),
}


@contextmanager
def open_llm() -> Iterator[paged.LLM]:
    """A tiny model with a tokenizer and a chat template. Its `folder` is where it lies."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as name:
        folder = Path(name)
        tiny_model("llama").save(folder)
        (folder / "tokenizer.json").write_bytes(_tokenizer_seed())
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
        with paged.LLM(folder, dtype="float32", num_threads=1) as llm:
            llm.folder = folder  # type: ignore[attr-defined]
            yield llm


def attempt_of(target: str, llm: paged.LLM, max_examples: int) -> Callable[[], None]:
    """Calls the target with drawn arguments; what it raises besides NAMED, or an engine that then answers otherwise
    than before, is a finding."""
    call, strategy = TARGETS[target]
    probe = ([5, 6, 7], paged.SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True))
    expected = llm.generate(*probe).token_ids

    @settings(max_examples=max_examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def attempt(keywords: dict[str, Any]) -> None:
        try:
            call(llm, keywords)
        except NAMED as error:
            assert len(str(error)) < 2000, "an error that nobody can read"
        assert llm.submit(*probe).result(60).token_ids == expected

    return attempt


def main() -> None:
    import atheris

    target = sys.argv.pop(1)
    atheris.instrument_all()
    with open_llm() as llm:
        attempt: Any = attempt_of(target, llm, 1)
        atheris.Setup(sys.argv, attempt.hypothesis.fuzz_one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

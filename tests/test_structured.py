# SPDX-License-Identifier: Apache-2.0
"""Structured output against independent definitions: what masks allow is what may follow, and all of it."""

from __future__ import annotations

import importlib.util
import json
import random
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paged import grammar
from paged.grammar import GrammarCompiler, GrammarGuide
from paged.guide import Stop
from paged.loading import open_checkpoint
from paged.structured import StructuredOutputsParams
from paged.text import Tokenizer, load_tokenizer
from paged.text.backend import Backend
from paged.text.token_bytes import TokenBytes
from paged.text.tokenizer import TokenIds

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema judges what was generated: pip install 'paged[test]'")
regex = pytest.importorskip("regex", reason="regex knows partial matches: pip install 'paged[test]'")
pytest.importorskip("llguidance", reason="structured output is an extra: pip install 'paged[structured]'")

END, SPECIAL, UNUSED = 0, 1, 2
PIECES = [b"<end>", b"<special>", b"", *(bytes([byte]) for byte in range(256))]
PIECES += [
    b"ab",
    b"abc",
    b"ab",
    b'{"',
    b'":',
    b'", "',
    b"12",
    b"-",
    b"\xc3\xa9",
    b"\x9f\x8e",
    b"true",
    b" a",
    b"}\n",
    b"aa",
]


class _Greedy:
    """The longest piece that fits, again and again."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        data, token_ids = text.encode(), []
        ordinary = [token for token in range(len(PIECES)) if token > UNUSED]
        while data:
            token = max((t for t in ordinary if data.startswith(PIECES[t])), key=lambda t: len(PIECES[t]))
            token_ids.append(token)
            data = data[len(PIECES[token]) :]
        return token_ids


VOCAB_SIZE = len(PIECES) + 5  # logits are padded
TOKENIZER = Tokenizer(
    Backend(_Greedy(), TokenBytes.of(PIECES, [END, SPECIAL])), TokenIds(bos=None, eos=END, ends=frozenset([END]))
)
COMPILER = GrammarCompiler(TOKENIZER, VOCAB_SIZE)


def _allowed(guide: GrammarGuide, token_ids: Sequence[int], vocab_size: int = VOCAB_SIZE, end: int = END) -> set[int]:
    mask = guide.next_mask(token_ids)
    if isinstance(mask, Stop):
        return {end}
    assert mask.dtype == np.uint32 and mask.shape == ((vocab_size + 31) // 32,)
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def _text(token_ids: Sequence[int]) -> bytes:
    return b"".join(PIECES[token] for token in token_ids)


def _is_forced(allowed: set[int], text: bytes, whole: Sequence[bytes]) -> bool:
    """Where there is one way on, the library allows only the first token that the tokenizer itself would write."""
    piece = PIECES[next(iter(allowed))]
    return len(allowed) == 1 and all(
        full.startswith(text + piece) or (text + piece).startswith(full) for full in whole if full != text
    )


def _walk(guide: GrammarGuide, rng: random.Random, pieces: TokenBytes, end: int, vocab_size: int) -> list[int] | None:
    """Tokens drawn from the masks up to the end of the text, preferring an end once 60 are there; None: too long."""
    token_ids: list[int] = []
    while len(token_ids) < 400:
        allowed = _allowed(guide, token_ids, vocab_size, end)
        assert allowed, "a dead end"
        if end in allowed and (len(token_ids) > 60 or len(allowed) == 1 or rng.random() < 0.1):
            return token_ids
        closing = [t for t in allowed if t != end and set(pieces[t]) <= set(b'"]} \n')] if len(token_ids) > 60 else []
        token_ids.append(rng.choice(closing or sorted(allowed - {end})))
    return None


CHOICES = st.lists(
    st.one_of(st.text(min_size=1, max_size=6), st.text("ab", min_size=1, max_size=6)), min_size=1, max_size=5
)


@settings(max_examples=60, deadline=None)
@given(CHOICES, st.randoms(use_true_random=False))
def test_a_choice_allows_what_begins_one(choices: list[str], rng: random.Random) -> None:
    guide = COMPILER.guide(StructuredOutputsParams(choice=choices))
    wanted, token_ids = {choice.encode() for choice in choices}, list[int]()
    while True:
        text = _text(token_ids)
        expected = {t for t in range(3, len(PIECES)) if any(full.startswith(text + PIECES[t]) for full in wanted)}
        expected |= {END} if text in wanted else set()
        allowed = _allowed(guide, token_ids)
        begun = [full for full in wanted if full.startswith(text)]
        assert allowed == expected or _is_forced(allowed, text, begun)
        assert guide.may_end == (END in allowed) == (END in expected)
        token = rng.choice(sorted(allowed))
        if token == END:
            return
        token_ids.append(token)


@pytest.mark.parametrize(
    "pattern", [r"[0-9]{3}-[0-9]{4}", r"(ab|abc)+c?", r"^a*$|b", r"[^a]{2,3}", r"x(a|aa)y|ab", r"/\{.\}"]
)
def test_a_regex_allows_what_can_still_match(pattern: str) -> None:
    params, rng = StructuredOutputsParams(regex=pattern), random.Random(1)
    ascii_tokens = [t for t in range(3, len(PIECES)) if PIECES[t].isascii()]
    for _ in range(12):
        guide, token_ids = COMPILER.guide(params), list[int]()
        while len(token_ids) < 12:
            text = _text(token_ids).decode()
            expected = {
                t for t in ascii_tokens if regex.fullmatch(pattern, text + PIECES[t].decode(), partial=True) is not None
            }
            allowed = _allowed(guide, token_ids)
            ours = {t for t in allowed if t != END and PIECES[t].isascii()}
            assert ours == expected or (ours < expected and _is_forced(allowed, b"", [PIECES[t] for t in expected]))
            assert (END in allowed) == (regex.fullmatch(pattern, text) is not None)
            if not expected:
                break
            token_ids.append(rng.choice(sorted(expected)))


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "size": {"type": "number"},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "ünï", 'q"']}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}},
            "required": ["kids"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
MIXED = {
    "anyOf": [{"type": "null"}, {"type": "boolean"}, {"type": "string", "pattern": "^[a-c]{2,4}$"}, {"const": [1, "x"]}]
}
SCHEMAS = {"person": PERSON, "tree": TREE, "mixed": MIXED, "object": {"type": "object"}}


@pytest.mark.parametrize("name", SCHEMAS)
def test_walks_through_the_masks_are_json_of_the_schema(name: str) -> None:
    params, rng, ended = StructuredOutputsParams(json=SCHEMAS[name]), random.Random(2), 0
    for _ in range(25):
        token_ids = _walk(COMPILER.guide(params), rng, TOKENIZER.token_bytes(), END, VOCAB_SIZE)
        if token_ids is not None:
            ended += 1
            jsonschema.validate(json.loads(_text(token_ids)), SCHEMAS[name])
    assert ended >= 5


VALUES = {
    "person": [{"name": "Zoë", "age": 7}, {"name": "", "age": 150, "size": -1.5e-7, "tags": ["ünï", 'q"']}],
    "tree": [{"kids": []}, {"kids": [{"kids": [{"kids": []}]}, {"kids": []}]}],
    "mixed": [None, True, "abca", [1, "x"]],
    "object": [{}, {"a": [1, {"b": None}], "é\n\u2028": '\\"/\t🎉'}],
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_value_of_the_schema_can_be_written(name: str) -> None:
    params = StructuredOutputsParams(json=json.dumps(SCHEMAS[name]))
    for value in VALUES[name]:
        for text in (json.dumps(value, ensure_ascii=False, indent=indent) for indent in (None, 2)):
            guide, token_ids = COMPILER.guide(params), TOKENIZER.encode(text)
            for position, token in enumerate(token_ids):
                assert token in _allowed(guide, token_ids[:position]), text[:position]
            assert END in _allowed(guide, token_ids) and guide.may_end


def test_json_options() -> None:
    def accepts(text: str, **options: Any) -> bool:
        guide = COMPILER.guide(StructuredOutputsParams(**options))
        try:
            return END in _allowed(guide, TOKENIZER.encode(text))
        except ValueError:
            return False

    open_schema = {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {}}}}}
    assert accepts('{"a": {"x": 1}}', json=open_schema)
    assert not accepts('{"a": {"x": 1}}', json=open_schema, disable_additional_properties=True)
    assert accepts('{"a":{"b":1}}', json=open_schema, disable_any_whitespace=True)
    assert not accepts('{"a": {"b":1}}', json=open_schema, disable_any_whitespace=True)
    assert accepts('{ "a":{ } }', json=open_schema, whitespace_pattern=" ")
    assert not accepts('{  "a":{}}', json=open_schema, whitespace_pattern=" ")
    assert accepts("{}", json_object=True) and not accepts("[]", json_object=True)


def test_a_class_that_knows_its_schema() -> None:
    class Model:
        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:
            return {"type": "integer"}

    assert StructuredOutputsParams(json=Model).source == '{"type": "integer"}'


@pytest.mark.parametrize(
    "text",
    ['start: "[" NUMBER ("," NUMBER)* "]"\nNUMBER: /[0-9]+/', 'root ::= "[" n ("," n)* "]"\nn ::= [0-9]+'],
    ids=["lark", "gbnf"],
)
def test_grammars(text: str) -> None:
    rng, ended = random.Random(3), 0
    for _ in range(20):
        guide = COMPILER.guide(StructuredOutputsParams(grammar=text))
        token_ids = _walk(guide, rng, TOKENIZER.token_bytes(), END, VOCAB_SIZE)
        if token_ids is not None:
            ended += 1
            assert regex.fullmatch(r"\[[0-9]+(,[0-9]+)*\]", _text(token_ids).decode())
    assert ended >= 5


def test_structural_tags_leave_the_text_around_them_free() -> None:
    tag = {"structures": [{"begin": "<f=", "schema": {"type": "integer"}, "end": ">"}], "triggers": ["<f"]}
    params = StructuredOutputsParams(structural_tag=tag)
    for text, allowed in (("free <g=x> text", True), ("a <f=12> b <f=3>", True), ("a <f=x", False), ("<f=1", None)):
        guide = COMPILER.guide(params)
        if allowed is False:
            with pytest.raises(ValueError, match="leaves its grammar"):
                guide.next_mask(TOKENIZER.encode(text))
        else:
            assert (END in _allowed(guide, TOKENIZER.encode(text))) is (allowed is True)


@pytest.mark.parametrize("name", ["smollm2-135m-instruct.gguf", "gemma-3-270m.gguf"])
def test_vocabularies_of_real_models(real_models: Mapping[str, Path], name: str) -> None:
    path = real_models[name]
    with open_checkpoint(path) as checkpoint:
        tokenizer = load_tokenizer(path, checkpoint)
    assert tokenizer is not None and tokenizer.eos_token_id is not None
    vocab_size, rng, table = tokenizer.vocab_size + 77, random.Random(4), tokenizer.token_bytes()
    compiler, ended = GrammarCompiler(tokenizer, vocab_size), 0
    special = set(np.flatnonzero(table.is_special).tolist())
    for name in ("person", "mixed"):
        for _ in range(15):
            guide = compiler.guide(StructuredOutputsParams(json=SCHEMAS[name]))
            token_ids = _walk(guide, rng, table, tokenizer.eos_token_id, vocab_size)
            if token_ids is not None:
                assert not special.intersection(token_ids)
                ended += 1
                jsonschema.validate(json.loads(tokenizer.decode(token_ids)), SCHEMAS[name])
        for value in VALUES[name]:
            guide, token_ids = (
                compiler.guide(StructuredOutputsParams(json=SCHEMAS[name])),
                tokenizer.encode(json.dumps(value, ensure_ascii=False), False),
            )
            allowed = _allowed(guide, token_ids, vocab_size, tokenizer.eos_token_id)
            assert tokenizer.eos_token_ids <= allowed and max(allowed) < tokenizer.vocab_size
    assert ended >= 10


MALFORMED: list[dict[str, Any]] = [
    {"json": {"type": "strng"}},
    {"json": {"type": "string", "pattern": "("}},
    {"json": {"$ref": "#/nowhere"}},
    {"json": {"$ref": "http://localhost:1/schema.json"}},
    {"json": {"$ref": "#"}},
    {"json": {"properties": []}},
    {"json": {"allOf": [{"type": "string"}, {"type": "number"}]}},
    {"json": {"enum": []}},
    {"json": {"not": {}}},
    {"regex": "("},
    {"regex": r"(a)\1"},
    {"regex": "[^\\s\\S]"},
    {"grammar": "nothing"},
    {"grammar": 'start: "a" b'},
    {"grammar": "start: start"},
    {"grammar": "root ::= ("},
    {"grammar": 'start: "a"' + ' "b"' * 70_000},
    {"structural_tag": {"structures": [{"begin": "<f"}]}},
    {"structural_tag": {"structures": [], "triggers": []}},
    {"structural_tag": {"structures": [{"begin": "<f", "schema": {"type": "x"}, "end": ""}], "triggers": ["<f"]}},
]


@pytest.mark.parametrize("given", MALFORMED, ids=lambda given: str(given)[:40])
def test_what_cannot_be_compiled_says_why(given: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    kind = next(iter(given))
    for _ in range(2):  # also when it is asked for again
        with pytest.raises(ValueError, match=rf"^{kind} (cannot be compiled|must have)"):
            COMPILER.guide(StructuredOutputsParams(**given))
    assert capfd.readouterr() == ("", "")  # nothing prints


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one"),
        ({"regex": "a", "choice": ["b"]}, "exactly one"),
        ({"regex": ""}, "regex must be"),
        ({"regex": 3}, "regex must be"),
        ({"choice": []}, "choice must be"),
        ({"choice": "abc"}, "choice must be"),
        ({"choice": ["a", ""]}, "choice takes"),
        ({"json": "{"}, "json must be JSON"),
        ({"json": {"a": {1}}}, "json must be JSON"),
        ({"json": {"a": float("nan")}}, "json must be JSON"),
        ({"json": [1]}, "json must be a JSON object"),
        ({"json": '{"a":' * 100_000 + "1" + "}" * 100_000}, "json must be JSON"),
        ({"regex": "a" * (1 << 20) + "b"}, "up to 1048576 characters"),
    ],
)
def test_what_is_no_parameter_is_refused_at_once(given: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        StructuredOutputsParams(**given)


def test_a_text_that_leaves_its_grammar_is_an_error() -> None:
    guide = COMPILER.guide(StructuredOutputsParams(choice=["ab"]))
    with pytest.raises(ValueError, match="leaves its grammar"):
        guide.next_mask(TOKENIZER.encode("b"))


def test_many_threads_compile_a_grammar_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[StructuredOutputsParams] = []
    compile_one = grammar._compile
    monkeypatch.setattr(grammar, "_compile", lambda t, params: compiled.append(params) or compile_one(t, params))
    compiler, masks = GrammarCompiler(TOKENIZER, VOCAB_SIZE), list[bytes]()

    def compile_and_ask() -> None:
        masks.append(compiler.guide(StructuredOutputsParams(json=dict(PERSON))).next_mask([]).tobytes())

    threads = [threading.Thread(target=compile_and_ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compiled) == 1 and len(masks) == 8 and len(set(masks)) == 1
    for index in range(100):  # what is kept is bounded, and the least recently used goes
        compiler.guide(StructuredOutputsParams(choice=[str(index)]))
    compiler.guide(StructuredOutputsParams(choice=["99"]))
    compiler.guide(StructuredOutputsParams(json=PERSON))
    assert len(compiled) == 102 and len(compiler._compiled) == 64


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'paged\[structured\]'"):
        GrammarCompiler(TOKENIZER, VOCAB_SIZE)


def test_a_model_without_an_end_cannot_be_guided() -> None:
    endless = Tokenizer(Backend(_Greedy(), TokenBytes.of(PIECES, [])), TokenIds(None, None, frozenset()))
    with pytest.raises(ValueError, match="end-of-sequence"):
        GrammarCompiler(endless, VOCAB_SIZE)

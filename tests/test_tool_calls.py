# SPDX-License-Identifier: Apache-2.0
"""Tool calls: the families' spellings, and an incremental parser that no way of cutting the text can change."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paged.text.tool_calls import FORMATS, ToolCall, format_of_template, gemma_instructions, new_call_id, plain_tools
from paged.text.tool_literals import LiteralSyntaxError, parse_python_calls
from paged.text.tool_parser import Piece, ToolCallParser

NAMES = ["f", "get_weather", "a.b"]
HIDDEN = ["</s>", "<|eot_id|>", "<tool_response>"]


def _parse(format: str, chunks: Sequence[str]) -> list[Piece]:
    """What the parser makes of it, with neighbouring texts joined and calls numbered."""
    numbers = itertools.count()
    parser = ToolCallParser(FORMATS[format], NAMES, hidden=HIDDEN, new_id=lambda: f"call{next(numbers)}")
    pieces = [piece for chunk in chunks for piece in parser.feed(chunk)] + parser.finish()
    joined: list[Piece] = []
    for piece in pieces:
        assert piece, "an empty piece"
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def _call(name: str = "f", number: int = 0, **arguments: Any) -> ToolCall:
    return ToolCall(name, arguments, f"call{number}")


TRICKY = {"text": '</tool_call> "quoted" \\ {[} [TOOL_CALLS] ;\n é🎉', "n": [1, 2.5, None, True, {"x": {}}]}
EXAMPLES: list[tuple[str, str, list[Piece]]] = [
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', [_call(a=1)]),
    (
        "hermes",
        'Let me see.\n<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>\n{"name": "g"}\n</tool_call>\n'
        "\nDone. ",
        ["Let me see.", _call(), _call("g", 1), "Done. "],
    ),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}', [_call(a=1)]),  # arguments as text, no end
    ("hermes", "<tool_call>" + json.dumps({"name": "f", "arguments": TRICKY}) + "</tool_call></s>", [_call(**TRICKY)]),
    ("hermes", "a <tool_call>{not json}</tool_call> b", ["a <tool_call>{not json}</tool_call> b"]),
    ("hermes", '<tool_call> no <tool_call>{"name": "f"}</tool_call>', ["<tool_call> no", _call()]),
    ("hermes", '<tool_call>{"name": "f"', ['<tool_call>{"name": "f"']),
    (
        "hermes",
        '<tool_call>{"name": 1, "arguments": {}}</tool_call>',
        ['<tool_call>{"name": 1, "arguments": {}}</tool_call>'],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": NaN}}',
        ['<tool_call>{"name": "f", "arguments": {"a": NaN}}'],
    ),
    ("hermes", "  a < b <tool_ <tool_cal", ["  a < b <tool_ <tool_cal"]),
    ("hermes", " \n ", [" \n "]),
    ("llama3", '{"name": "f", "parameters": {"a": "x"}}<|eot_id|>', [_call(a="x")]),
    (
        "llama3",
        '\n{"name": "f", "parameters": {}}; {"name": "a.b", "arguments": {"b": 2}}',
        [_call(), _call("a.b", 1, b=2)],
    ),
    ("llama3", '<|python_tag|>{"name": "unknown", "parameters": {}}', [_call("unknown")]),
    ("llama3", '{"name": "unknown", "parameters": {}} is JSON', ['{"name": "unknown", "parameters": {}} is JSON']),
    ("llama3", 'Say {"name": "f", "parameters": {}}', ['Say {"name": "f", "parameters": {}}']),
    ("llama3", '{"name": "f"}; that is it', [_call(), "; that is it"]),
    ("llama3", '<|python_tag|>brave_search.call(query="x")', ['<|python_tag|>brave_search.call(query="x")']),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": [1]}, "id": "Ab3dEf7h9"}]</s>',
        [ToolCall("f", {"a": [1]}, "Ab3dEf7h9")],
    ),
    (
        "mistral",
        '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]',
        [_call(), _call("g", 1)],
    ),
    (
        "mistral",
        'Hm. [TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]get_weather[CALL_ID]xyz[ARGS]{}',
        ["Hm.", _call(a=1), ToolCall("get_weather", {}, "xyz")],
    ),
    ("mistral", "[TOOL_CALLS][1]", ["[TOOL_CALLS][1]"]),
    ("mistral", "[TOOL_CALLS]just words, no call", ["[TOOL_CALLS]just words, no call"]),
    (
        "gemma",
        "[f(a=1, b='it\\'s', c=[True, None, -2.5e1], d={'k': \"v\"}), a.b()]",
        [_call(a=1, b="it's", c=[True, None, -25.0], d={"k": "v"}), _call("a.b", 1)],
    ),
    ("gemma", "[1] is a citation, f(a=1) too", ["[1] is a citation, f(a=1) too"]),
    ("gemma", "[f(a=__import__('os'))]", ["[f(a=__import__('os'))]"]),
    ("gemma", "[f(1)]", ["[f(1)]"]),
    ("gemma", "[unknown()]", ["[unknown()]"]),
]


@pytest.mark.parametrize(("format", "text", "expected"), EXAMPLES)
def test_the_families_spellings_however_they_are_cut(format: str, text: str, expected: list[Piece]) -> None:
    assert _parse(format, [text]) == expected
    assert _parse(format, list(text)) == expected
    for cut in range(len(text)):
        assert _parse(format, [text[:cut], text[cut:]]) == expected
        assert _parse(format, [text[:cut], "", *text[cut : cut + 3], text[cut + 3 :]]) == expected


FRAGMENTS = (
    [text for _, text, _ in EXAMPLES]
    + list("{}[]()\"'\\;<> \n,:=a")
    + [
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<|python_tag|>",
        '"name"',
        '{"name": "f"}',
        "f(",
        "</s>",
        " " * 300,
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(FORMATS)), st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=8), st.data()
)
def test_any_text_cut_anywhere_gives_the_same(format: str, fragments: list[str], data: st.DataObject) -> None:
    text = "".join(fragments)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    chunks = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    assert _parse(format, chunks) == _parse(format, [text]) == _parse(format, list(text))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=8))
def test_a_text_without_calls_stays_as_it_is(format: str, fragments: list[str]) -> None:
    text = "".join(fragments)
    for hidden in HIDDEN:
        text = text.replace(hidden, "")
    pieces = _parse(format, [text])
    if not any(isinstance(piece, ToolCall) for piece in pieces) and not any(hidden in text for hidden in HIDDEN):
        assert "".join(map(str, pieces)) == text


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), JSON, max_size=3)


def _spelled(format: str, arguments: dict[str, Any]) -> str:
    text = json.dumps(arguments)
    return {
        "hermes": f'<tool_call>\n{{"name": "f", "arguments": {text}}}\n</tool_call>',
        "llama3": f'{{"name": "f", "parameters": {text}}}',
        "mistral": f'[TOOL_CALLS] [{{"name": "f", "arguments": {text}}}]',
        "gemma": f"[f({', '.join(f'{name}={value!r}' for name, value in arguments.items())})]",
    }[format]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), ARGUMENTS)
def test_arguments_come_back(format: str, arguments: dict[str, Any]) -> None:
    assert _parse(format, [_spelled(format, arguments)]) == [ToolCall("f", arguments, "call0")]


def test_text_outside_of_calls_leaves_at_once() -> None:
    parser = ToolCallParser(FORMATS["hermes"], NAMES)
    assert parser.feed("Hello") == ["Hello"]
    assert parser.feed(" wor") == [" wor"]
    assert parser.feed("ld <") == ["ld"]
    assert parser.feed("b> ") == [" <b>"]
    assert parser.feed("<tool_call>{") == []
    assert [call.name for call in parser.feed('"name": "f"}') if isinstance(call, ToolCall)] == ["f"]


@pytest.mark.parametrize("format", sorted(FORMATS))
@pytest.mark.parametrize(
    "unit", ["<tool_call>", "[TOOL_CALLS]", '{"a":', "[f(a=", "<", " ", '"', "\\", "{", "[", "<|python_tag|>{"]
)
def test_work_is_linear_in_hostile_text(format: str, unit: str) -> None:
    """Quadratic work would take minutes."""
    text = unit * 50_000
    pieces = _parse(format, [text[i : i + 7] for i in range(0, len(text), 7)])
    assert "".join(map(str, pieces)) == text


def test_a_body_beyond_the_bound_is_text() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": "' + "x" * (1 << 20) + '"}}</tool_call><tool_call>{"name": "f"}'
    end = text.index("</tool_call>") + len("</tool_call>")
    assert _parse("hermes", [text]) == [text[:end], _call()]
    assert _parse("hermes", [text[i : i + 1000] for i in range(0, len(text), 1000)]) == [text[:end], _call()]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[f]",
        "[f(]",
        "[f(a)]",
        "[f(a=1) g()]",
        "[f(a=b)]",
        "[f(a=1e999)]",
        "[f(a={1: 2})]",
        "[f(a=1)] x",
        "f(a=1)",
        "[" * 100_000,
        "[f(a=" + "[" * 1000 + "]" * 1000 + ")]",
        "[f(a=" + "9" * 10_000 + ")]",
        "[f(a='x)]",
        "[f(a=lambda: 1)]",
    ],
)
def test_python_that_is_no_list_of_calls(text: str) -> None:
    with pytest.raises(LiteralSyntaxError):
        parse_python_calls(text)


def test_the_template_tells_the_format() -> None:
    assert format_of_template("{{ tools }}<tool_call>") is FORMATS["hermes"]
    assert format_of_template("[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS]") is FORMATS["mistral"]
    assert format_of_template("<|start_header_id|>{% if tools %}") is FORMATS["llama3"]
    assert format_of_template("<start_of_turn>model") is FORMATS["gemma"]
    assert format_of_template("<|im_start|>{{ tools }}") is None
    assert format_of_template("<tool_call><function=f>{{ tools }}") is None


def test_tools_are_plain_and_named() -> None:
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    whole = [{"type": "function", "function": function}]
    assert plain_tools([function]) == plain_tools(whole) == whole
    assert json.dumps([function], indent=2) in gemma_instructions(whole)
    for wrong in (["f"], [{"description": "no name"}], [{"function": 3}], []):
        with pytest.raises((TypeError, ValueError), match=r"tool"):
            plain_tools(wrong)  # type: ignore[arg-type]


def test_ids_are_what_mistral_asks_for_and_differ() -> None:
    ids = {new_call_id() for _ in range(1000)}
    assert len(ids) == 1000 and all(len(i) == 9 and i.isalnum() and i.isascii() for i in ids)
    assert ToolCall("f", {"a": 1}, "x").to_dict() == {
        "type": "function",
        "id": "x",
        "function": {"name": "f", "arguments": {"a": 1}},
    }

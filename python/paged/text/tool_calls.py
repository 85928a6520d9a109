# SPDX-License-Identifier: Apache-2.0
"""What a model writes to call a tool: the spellings of the families, one `ToolFormat` each.

A call is a marker, a short header and a body in brackets. `tool_parser.py` finds these in a stream of text; here is
what they mean. A body that is not what its format says is no call: it stays text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from paged.text.tool_literals import LiteralSyntaxError, parse_python_calls

_ID_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ID_LENGTH = 9  # what Mistral's templates ask for; the others take any
_MISTRAL_HEADER = re.compile(r"\s*(?:([\w.:-]{1,128})(?:\[CALL_ID\](\w{1,64}))?\[ARGS\]\s*)?")


@dataclass(frozen=True)
class ToolCall:
    """A function that the model wants called.

    Attributes:
        name: of one of the tools, if the model keeps to them.
        arguments: JSON data, not checked against the tool's schema.
        id: the model's own, or nine random characters; the message with the result names it.
    """

    name: str
    arguments: dict[str, Any]
    id: str

    def to_dict(self) -> dict[str, Any]:
        """As an assistant's message has it: `{"role": "assistant", "content": "", "tool_calls": [call.to_dict()]}`."""
        return {"type": "function", "id": self.id, "function": {"name": self.name, "arguments": self.arguments}}


def new_call_id() -> str:
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))


@dataclass(frozen=True, slots=True)
class Found:
    """A call before it has an id of its own."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None


@dataclass(frozen=True, eq=False, slots=True)
class ToolFormat:
    """One family's spelling.

    Attributes:
        markers: what begins a call anywhere.
        opens_bare: characters that begin a call without a marker, where the answer begins or after `separator`.
        opens_body: characters that begin a body; the first of them after the marker ends the header.
        named_header: the header may hold a function's name; otherwise it is white space.
        closes: follows a body, if the model does not forget it.
        separator: follows a body when another bare call comes.
        parse: the calls of (header, body), None if they are none.
        python: the body is Python, with its strings, not JSON.
    """

    name: str
    parse: Callable[[str, str], list[Found] | None]
    markers: tuple[str, ...] = ()
    opens_bare: str = ""
    opens_body: str = "{"
    named_header: bool = False
    closes: str = ""
    separator: str = ""
    python: bool = False


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _load(text: str) -> Any:
    """JSON data, None where it is no JSON."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None


def _call(data: Any) -> Found | None:
    """`{"name": ..., "arguments": {...}}`, or "parameters"; arguments may be JSON text, or missing for none."""
    if not isinstance(data, dict) or not isinstance(data.get("name"), str) or not data["name"]:
        return None
    arguments = data.get("arguments", data.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _load(arguments)
    given_id = data.get("id")
    if not isinstance(arguments, dict):
        return None
    return Found(data["name"], arguments, given_id if isinstance(given_id, str) and given_id else None)


def _parse_json(header: str, body: str) -> list[Found] | None:
    found = _call(_load(body))
    return None if found is None else [found]


def _parse_mistral(header: str, body: str) -> list[Found] | None:
    match = _MISTRAL_HEADER.fullmatch(header)
    data = _load(body)
    if match is None:
        return None
    if match[1]:
        return [Found(match[1], data, match[2])] if isinstance(data, dict) else None
    found = [_call(item) for item in (data if isinstance(data, list) else [data])]
    calls = [call for call in found if call is not None]
    return calls if calls and len(calls) == len(found) else None


def _parse_python(header: str, body: str) -> list[Found] | None:
    try:
        return [Found(name, arguments) for name, arguments in parse_python_calls(body)]
    except LiteralSyntaxError:
        return None


FORMATS: Mapping[str, ToolFormat] = MappingProxyType(
    {
        known.name: known
        for known in (
            # Qwen, Hermes: <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>
            ToolFormat("hermes", _parse_json, markers=("<tool_call>",), closes="</tool_call>"),
            # Llama 3: {"name": "f", "parameters": {"a": 1}}; {...}, or after <|python_tag|>
            ToolFormat("llama3", _parse_json, markers=("<|python_tag|>",), opens_bare="{", separator=";"),
            # Mistral: [TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}], later [TOOL_CALLS]f[ARGS]{"a": 1}
            ToolFormat("mistral", _parse_mistral, markers=("[TOOL_CALLS]",), opens_body="[{", named_header=True),
            # Gemma 3: [f(a=1), g(b="x")]
            ToolFormat("gemma", _parse_python, opens_bare="[", opens_body="[", python=True),
        )
    }
)


def format_of_template(template: str) -> ToolFormat | None:
    """The format that a chat template's own words tell, None if it is none of the known."""
    if "[TOOL_CALLS]" in template:
        return FORMATS["mistral"]
    if "<tool_call>" in template and "<function=" not in template:
        return FORMATS["hermes"]
    if "<|python_tag|>" in template or ("<|start_header_id|>" in template and "tools" in template):
        return FORMATS["llama3"]
    return FORMATS["gemma"] if "<start_of_turn>" in template else None


def plain_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each as `{"type": "function", "function": {"name", "description", "parameters"}}`; the inner object will do.

    Raises TypeError or ValueError for what is none.
    """
    plain: list[dict[str, Any]] = []
    for tool in tools:
        if not isinstance(tool, Mapping):
            raise TypeError(f"a tool is a dict with a function's name, description and parameters, got {tool!r:.80}")
        function = tool.get("function", tool)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise ValueError(f"a tool must have a function's name, got {tool!r:.200}")
        plain.append({"type": "function", "function": dict(function)})
    if not plain:
        raise ValueError("tools must not be empty: leave it out where there are none")
    return plain


def gemma_instructions(tools: Sequence[Mapping[str, Any]]) -> str:
    """What Gemma 3 is told of tools, for its template has no place for them: the documented call syntax and schemas."""
    functions = json.dumps([tool["function"] for tool in tools], ensure_ascii=False, indent=2)
    return (
        "You can call the functions below. To call any of them, answer with nothing but a list of calls, written as "
        "[func_name1(param_name1=value1, param_name2=value2), func_name2(param_name=value)]. Otherwise answer in "
        f"words.\n\n{functions}"
    )

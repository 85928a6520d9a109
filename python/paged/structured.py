# SPDX-License-Identifier: Apache-2.0
"""What a request's text must look like: the parameters of structured output. `paged.grammar` compiles them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paged.checks import shown

_MAX_CHARACTERS = 1 << 20
_KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


@dataclass(frozen=True)
class StructuredOutputsParams:
    """Names and meanings are vLLM's. Exactly one of the first six says what the whole text must be.

    Attributes:
        json: a JSON schema as a dict or a string, or a class with `model_json_schema()` (pydantic).
        regex: a regular expression that the whole text matches: Rust's syntax, without look-around and
            back-references.
        choice: the texts to choose from.
        grammar: a context-free grammar, in Lark's syntax with a rule `start`, or in GBNF with a rule `root ::= ...`.
        json_object: True: any JSON object.
        structural_tag: free text, with parts between tags that follow a JSON schema each, as a dict or a string:
            `{"structures": [{"begin": "<f>", "schema": {...}, "end": "</f>"}], "triggers": ["<f"]}`.
        disable_any_whitespace: JSON without whitespace between its parts.
        disable_additional_properties: objects have the properties that the schema names and no others.
        whitespace_pattern: a regular expression of what may stand between the parts of JSON.

    Raises:
        TypeError, ValueError: naming the field, what arrived and what is allowed. A schema, expression or grammar that
            cannot be compiled fails its request.
    """

    json: str | Mapping[str, Any] | type | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | Mapping[str, Any] | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None and getattr(self, kind) is not False]
        if len(given) != 1:
            raise ValueError(f"structured output takes exactly one of {', '.join(_KINDS)}, got {given or 'none'}")
        for name in ("regex", "grammar", "whitespace_pattern"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise TypeError(f"{name} must be a string that is not empty, got {shown(value)}")
        for name in ("json_object", "disable_any_whitespace", "disable_additional_properties"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, bool):
                raise TypeError(f"{name} must be True or False, got {shown(value)}")
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))
        for name in ("json", "structural_tag"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _json_text(name, getattr(self, name)))
        if len(self.source) > _MAX_CHARACTERS:
            raise ValueError(f"{self.kind} may have up to {_MAX_CHARACTERS} characters, got {len(self.source)}")

    @property
    def kind(self) -> str:
        """The one of the six that is given."""
        return next(kind for kind in _KINDS if getattr(self, kind))

    @property
    def source(self) -> str:
        """What is given, as text."""
        value = getattr(self, self.kind)
        if self.kind == "json_object":
            return '{"type": "object"}'
        return value if isinstance(value, str) else json.dumps(value)


def _choices(choices: object) -> tuple[str, ...]:
    if isinstance(choices, str) or not isinstance(choices, Sequence) or not choices:
        raise TypeError(f"choice must be a list of texts that is not empty, got {shown(choices)}")
    for text in choices:
        if not isinstance(text, str) or not text:
            raise TypeError(f"choice takes texts that are not empty, got {shown(text)}")
    return tuple(choices)


def _json_text(name: str, value: Any) -> str:
    """The JSON text of a schema given as text, as plain data or as a class that knows its schema."""
    if hasattr(value, "model_json_schema"):
        value = value.model_json_schema()
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
        text = json.dumps(parsed, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be JSON, as text or as plain data: {error}; got {shown(value)}") from error
    if not isinstance(parsed, Mapping):
        raise TypeError(f"{name} must be a JSON object, got {shown(value)}")
    return text

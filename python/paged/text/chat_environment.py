# SPDX-License-Identifier: Apache-2.0
"""The sandbox that chat templates run in.

Beside Jinja's own rules (no private attributes, no change of what is passed in): repeating text and raising to a power
are bounded, and a namespace keeps no underscored names. What a template writes is bounded by the caller.
"""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from jinja2 import Environment
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_MAX_OPERAND = 1 << 20


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks an assistant's words for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012  (as jinja2 declares it)

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not all(isinstance(n, int | float) and abs(n) <= 1024 for n in (left, right)):
            raise SecurityError("a chat template may not raise large numbers to a power")
        if operator == "*" and any(isinstance(n, str | list | tuple) for n in (left, right)):
            sizes = [
                n if isinstance(n, int) else len(n) for n in (left, right) if isinstance(n, int | str | list | tuple)
            ]
            if len(sizes) == 2 and sizes[0] * sizes[1] > _MAX_OPERAND:
                raise SecurityError(f"a chat template may not repeat text beyond {_MAX_OPERAND} characters")
        return super().call_binop(context, operator, left, right)


class _SafeNamespace(Namespace):
    def __init__(*arguments: Any, **names: Any) -> None:  # `self` may be one of the names
        self, *rest = arguments
        Namespace.__init__(self, dict(*rest, **names))
        for name in dict(*rest, **names):
            _refuse_private(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template may not store {name!r} on a namespace")


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, it does not escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> Environment:
    """A fresh sandbox with what Hugging Face's chat templates use."""
    sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    sandbox.filters["tojson"] = _tojson
    sandbox.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now, "namespace": _SafeNamespace}
    return sandbox

# SPDX-License-Identifier: Apache-2.0
"""The sandbox that chat templates run in.

Beside Jinja's own rules (no private attributes, no change of what is passed in) a template may use the filters below
only, a namespace keeps no underscored names, and whatever it does is charged to a `Budget`.
"""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from jinja2 import Environment, nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame, operators
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from paged.text.template_budget import KEY, STEP, Budget

_FILTERS = (
    *("abs", "batch", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float"),
    *("forceescape", "format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map"),
    *("max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "sort"),
    *("string", "sum", "title", "trim", "unique", "upper"),
)
_WRITING = frozenset(  # these turn what they get into text
    ["capitalize", "e", "escape", "forceescape", "indent", "lower", "safe", "string", "title", "trim", "upper"]
)
_PER_ITEM = 16


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks an assistant's words for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012  (as jinja2 declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


class _Code(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802  (as jinja2 names it)
        """`a ~ b`, through the environment."""
        self.write("environment.concat_values(context, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if isinstance(node.arg, nodes.Slice):
            self.write("environment.made(context, ")
            super().visit_Getitem(node, frame)
            self.write(")")
        else:
            super().visit_Getitem(node, frame)

    def visit_Operand(self, node: nodes.Operand, frame: Frame) -> None:  # noqa: N802
        """The right side of a comparison or of `in`."""
        self.write(f" {operators[node.op]} environment.read(context, ")
        self.visit(node.expr, frame)
        self.write(")")


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**", "+", "%"])
    code_generator_class = _Code

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Every round of a loop and every call of a macro begins by paying for itself and the text in it."""
        tree = super()._parse(source, name, filename)
        for block in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            assert isinstance(block, nodes.For | nodes.Macro | nodes.CallBlock)
            size = sum(len(data.data) for data in block.find_all(nodes.TemplateData))
            block.body.insert(0, nodes.ExprStmt(_payment(STEP + size)).set_lineno(block.lineno))
            if isinstance(block, nodes.For) and block.test is not None:
                block.test = nodes.Or(_payment(STEP), block.test)
        return tree

    def pay(self, context: Context, cost: int) -> None:
        _budget(context).charge(cost)

    def made(self, context: Context, value: Any) -> Any:
        return _budget(context).made(value)

    def read(self, context: Context, value: Any) -> Any:
        return _budget(context).read(value)

    def concat_values(self, context: Context, values: tuple[Any, ...]) -> str:
        _budget(context).written(values)
        return "".join(map(str, values))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _budget(context).operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call_test(
        self, name: str, value: Any, args: Any = None, kwargs: Any = None, context: Context | None = None,
        eval_ctx: Any = None,
    ) -> Any:  # fmt: skip
        """What select and its kin do with every item."""
        if context is not None:
            _budget(context).charge(STEP)
        return super().call_test(name, value, args, kwargs, context, eval_ctx)

    def call(self, context: Context, called: Any, /, *arguments: Any, **names: Any) -> Any:
        budget, owner = _budget(context), getattr(called, "__self__", None)
        if isinstance(owner, str):
            budget.method(owner, called.__name__, (*arguments, *names.values()))
        return budget.made(super().call(context, called, *arguments, **names))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`"...".format`, whose pattern must not ask for widths. Called for every attribute; None: it is another."""
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None
        pattern = value.__self__

        @pass_context
        def checked(context: Context, *arguments: Any, **names: Any) -> str:
            _budget(context).format(pattern, (*arguments, names))
            return formatted(*arguments, **names)

        return checked


def _payment(cost: int) -> nodes.Call:
    return nodes.Call(
        nodes.EnvironmentAttribute("pay"), [nodes.ContextReference(), nodes.Const(cost)], [], None, None
    )  # fmt: skip


def _budget(context: Context) -> Budget:
    budget: Budget = context.parent[KEY]
    return budget


def _paying(name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
    """`filter`, charged by what it makes, and before by what it writes out."""
    passes = getattr(filter, "jinja_pass_arg", None)
    kind = "" if passes is None else passes.name

    @pass_context
    def paying(context: Context, value: Any, *arguments: Any, **names: Any) -> Any:
        budget = _budget(context)
        budget.charge(STEP + (_PER_ITEM * len(value) if hasattr(value, "__len__") else 0))
        if name == "replace":
            budget.replacement(value, *[*arguments, *names.values()][:2])
        elif name == "join":
            value = value if hasattr(value, "__len__") else list(value)
            budget.joining(next(iter((*arguments, *names.values())), ""), value)
        elif name == "format":
            budget.format(str(value), (arguments, names))
        elif name in _WRITING:
            budget.written(value)
        if name in ("indent", "batch"):
            _check_width(arguments, names)
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}.get(kind)
        given = (value, *arguments) if first is None else (first, value, *arguments)
        return budget.made(filter(*given, **names))

    return paying


def _check_width(arguments: tuple[Any, ...], names: dict[str, Any]) -> None:
    for width in (*arguments, *names.values()):
        if (isinstance(width, int) and width > 100) or (isinstance(width, str) and len(width) > 100):
            raise SecurityError("a chat template may not indent or fill up by more than 100")


@pass_context
def _finalize(context: Context, value: Any) -> Any:
    """Of everything that `{{ }}` writes."""
    _budget(context).written(value)
    return value


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
    if len(format) > 100:
        raise SecurityError("a chat template may ask for a date in at most 100 characters")
    return datetime.now().strftime(format)


@pass_context
def _tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, it does not escape for HTML."""
    _check_width((indent,), {})
    budget = _budget(context)
    budget.written(value)
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    budget.charge(len(text))
    return text


def environment() -> Environment:
    """A fresh sandbox with what Hugging Face's chat templates use."""
    extensions: list[Any] = [_Generation, loopcontrols]
    sandbox = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=_finalize, optimized=False
    )  # fmt: skip
    sandbox.filters = {name: _paying(name, sandbox.filters[name]) for name in _FILTERS} | {"tojson": _tojson}
    del sandbox.globals["lipsum"]
    sandbox.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now, "namespace": _SafeNamespace}
    return sandbox

# SPDX-License-Identifier: Apache-2.0
"""The type stubs of the C++ module name what is there, with the same parameters, and nothing else."""

from __future__ import annotations

import ast
import inspect
import types
from pathlib import Path
from typing import Any

import pytest

import paged
from paged import _C

MODULES = {"__init__.pyi": _C, "ops.pyi": _C.ops}


def stub_of(name: str) -> dict[str, ast.stmt]:
    return definitions(ast.parse((Path(paged.__file__).parent / "_C" / name).read_text()).body)


def definitions(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
        elif isinstance(node, ast.Assign):
            found |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
    return found


def is_for_typing_only(node: ast.stmt) -> bool:
    """An alias or a protocol."""
    bases = node.bases if isinstance(node, ast.ClassDef) else []
    return isinstance(node, ast.Assign) or "Protocol" in map(ast.unparse, bases)


def public(names: Any) -> set[str]:
    return {name for name in names if not name.startswith("_") or name == "__init__"}


def parameters(function: ast.FunctionDef) -> str:
    """Names, kinds and defaults, as Python writes them."""
    arguments = function.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        argument.annotation = None
    return ast.unparse(arguments)


def runtime_parameters(function: Any) -> str:
    """From the first line of the docstring, where the bindings write the signature."""
    signature = (function.__doc__ or "").splitlines()[0]
    (parsed,) = ast.parse(f"def {signature}: ...").body
    assert isinstance(parsed, ast.FunctionDef)
    return parameters(parsed)


def check(where: str, node: ast.stmt, real: Any) -> None:
    if isinstance(node, ast.ClassDef):
        if not issubclass(real, BaseException):
            check_class(where, node, real)
    elif isinstance(node, ast.FunctionDef):
        if any(isinstance(decorator, ast.Name) and decorator.id == "property" for decorator in node.decorator_list):
            assert isinstance(real, property) and real.fset is None, where
        else:
            assert parameters(node) == runtime_parameters(real), where
    elif isinstance(real, property):  # an attribute
        assert isinstance(node, ast.AnnAssign), where
        assert ast.unparse(node.annotation).startswith("Final") == (real.fset is None), where


def check_class(where: str, node: ast.ClassDef, real: type) -> None:
    members = definitions(node.body)
    there = public(vars(real))
    if isinstance(vars(real).get("__init__"), types.WrapperDescriptorType):
        there.discard("__init__")  # only C++ makes these
    assert public(members) == there, where
    for name in sorted(there):
        check(f"{where}.{name}", members[name], vars(real)[name])


@pytest.mark.parametrize("name", MODULES)
def test_a_stub_is_what_the_module_is(name: str) -> None:
    stub, module = stub_of(name), MODULES[name]
    there = {key for key in public(vars(module)) if not isinstance(vars(module)[key], types.ModuleType)}
    assert public(key for key, node in stub.items() if not is_for_typing_only(node)) == there
    for key in sorted(there):
        check(f"{name}: {key}", stub[key], vars(module)[key])


def test_all_that_is_public_is_there_and_documented() -> None:
    assert (Path(paged.__file__).parent / "py.typed").exists()
    for name in paged.__all__:
        thing = getattr(paged, name)
        if inspect.isclass(thing):
            assert thing.__doc__, name
            methods = [member for key, member in vars(thing).items() if key[0] != "_" and inspect.isfunction(member)]
            assert all(method.__doc__ for method in methods), name

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that includes and imports follow the layers of docs/design.md. Prints each arrow that turns back."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPP = ROOT / "src" / "cpp"
PYTHON = ROOT / "python" / "paged"

# What each C++ folder may include besides itself and the standard library. ops and cpu are one layer seen from above:
# ops declares, cpu computes; exec and engine pass the thread pool through.
MAY_INCLUDE = {
    "base": set(),
    "core": {"base"},
    "cpu": {"base", "ops"},
    "ops": {"base", "cpu"},
    "exec": {"base", "ops", "cpu"},
    "engine": {"base", "core", "exec", "ops", "cpu"},
    "bindings": {"base", "core", "exec", "ops", "cpu", "engine"},
}
# Of cpu, those above may see the thread pool only.
CPU_FROM_ABOVE = {"cpu/thread_pool.h"}
# Python folders and what of paged they may import.
MAY_IMPORT = {
    "loading": {"loading", "progress"},
    "text": {"text", "loading"},
    "program": {"program", "loading", "_C", "progress"},
    "models": {"models", "program", "model_config"},
    "torch_backend": {"torch_backend", "program"},
}
LAZY_ONLY = {"torch", "transformers", "gguf", "huggingface_hub"}


def check_cpp() -> list[str]:
    problems = []
    for path in sorted(CPP.rglob("*")):
        if path.suffix not in {".h", ".cpp"}:
            continue
        folder = path.relative_to(CPP).parts[0]
        for included in re.findall(r'^#include "([^"]+)"', path.read_text(), re.M):
            target = included.split("/")[0]
            hidden = target == "cpu" and folder in {"exec", "engine"} and included not in CPU_FROM_ABOVE
            if target != folder and (target not in MAY_INCLUDE[folder] or hidden):
                problems.append(f"{path.relative_to(ROOT)}: {folder} may not include {included}")
    for path in CPP.rglob("*"):
        text = path.read_text() if path.is_file() else ""
        folder = path.relative_to(CPP).parts[0]
        if folder != "bindings" and re.search(r"pybind11|Python\.h|torch/", text):
            problems.append(f"{path.relative_to(ROOT)}: only bindings may know Python or torch")
    return problems


def imported(tree: ast.AST, top_level: bool) -> list[str]:
    nodes = tree.body if top_level and isinstance(tree, ast.Module) else ast.walk(tree)
    names = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "paged" else [node.module]
            )
    return names


def check_python() -> list[str]:
    problems = []
    for path in sorted(PYTHON.rglob("*.py")):
        place = path.relative_to(PYTHON).parts
        folder = place[0] if len(place) > 1 else ""
        tree = ast.parse(path.read_text())
        for name in imported(tree, top_level=False):
            parts = name.split(".")
            if parts[0] == "paged" and len(parts) > 1 and folder in MAY_IMPORT and parts[1] not in MAY_IMPORT[folder]:
                problems.append(f"{path.relative_to(ROOT)}: {folder} may not import {name}")
        if folder != "torch_backend":
            problems += [
                f"{path.relative_to(ROOT)}: import {name} where it is used, not at the top"
                for name in imported(tree, top_level=True)
                if name.split(".")[0] in LAZY_ONLY
            ]
    return problems


if __name__ == "__main__":
    found = check_cpp() + check_python()
    print("\n".join(found) or "layering: every arrow points down")
    sys.exit(1 if found else 0)

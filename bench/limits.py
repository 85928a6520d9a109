# SPDX-License-Identifier: Apache-2.0
"""What the machine itself allows, measured in the same run as the engines.

Read bandwidth bounds a single stream: a decode step reads every weight once. The time of the matrix products alone,
through torch, is what a batch or a prompt is held against; it is a strong library's rate, not a law.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import workloads

_SOURCE = Path(__file__).with_name("read_bandwidth.c")
_MATMUL_TIMES = Path(__file__).with_name("peers") / "matmul_times.py"
_PASSES = 15

BANDWIDTH = "limit: read bandwidth over the bytes of the weights"
MATMULS = "matrix products alone, torch (oneDNN)"


class ReadBandwidth:
    """A small C program, compiled for this machine once, that reads a buffer with several threads."""

    def __init__(self) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise FileNotFoundError("the read bandwidth needs a C compiler, and no cc, gcc or clang is on PATH")
        self._folder = tempfile.TemporaryDirectory()
        self._program = Path(self._folder.name) / "read_bandwidth"
        flags = ["-O3", "-march=native", "-pthread"]
        subprocess.run([compiler, *flags, str(_SOURCE), "-o", str(self._program)], check=True)

    def bytes_per_second(self, num_bytes: int, threads: int) -> float:
        """Best of several passes of `threads` threads, each over its share of a buffer of `num_bytes`."""
        command = [str(self._program), str(num_bytes), str(threads), str(_PASSES)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0])


def matmul_times(python: Path, model: Path, threads: int) -> dict[str, dict[int, float]]:
    """dtype -> rows -> seconds for one pass over the model's matrices. `python` must have torch."""
    command = [str(python), str(_MATMUL_TIMES), "--model", str(model), "--threads", str(threads)]
    times = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {dtype: {int(rows): seconds for rows, seconds in row.items()} for dtype, row in times.items()}


@dataclass
class Limits:
    """Samples of one run, round by round; `of` gives the medians as tokens a second."""

    steps_per_second: dict[str, list[float]] = field(default_factory=dict)
    matmul_seconds: list[dict[str, dict[int, float]]] = field(default_factory=list)

    def of(self, case: str, precision: str) -> tuple[str, float] | None:
        """The name and value of what `case` at `precision` is held against, or None where nothing was measured."""
        if case == workloads.SINGLE_STREAM.name:
            steps = self.steps_per_second.get(precision)
            return (BANDWIDTH, median(steps)) if steps else None
        dtype = {"bf16": "bfloat16", "fp32": "float32"}.get(precision)
        if dtype is None or not self.matmul_seconds:
            return None
        rates = [_matmul_rate(case, seconds[dtype]) for seconds in self.matmul_seconds]
        known = [rate for rate in rates if rate is not None]
        return (MATMULS, median(known)) if known else None


def _matmul_rate(case: str, seconds: dict[int, float]) -> float | None:
    """Tokens a second if a case were its matrix products: prompts 512 rows at a time, every request in each decode."""
    per_prompt_token = seconds[512] / 512
    if case == workloads.LONG_PROMPT.name:
        return 1 / per_prompt_token
    if case == workloads.MIXED_REQUESTS.name:
        decoding = workloads.MIXED_OUTPUT_TOKENS * seconds[32] / 32
        return workloads.MIXED_OUTPUT_TOKENS / (workloads.MIXED_PROMPT_TOKENS * per_prompt_token + decoding)
    if case == workloads.SHARED_PREFIX.name:
        return 1 / (per_prompt_token + seconds[16] / 16)
    return None

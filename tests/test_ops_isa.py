# SPDX-License-Identifier: Apache-2.0
"""The op tests hold on every instruction set that this CPU has, and PAGED_ISA refuses what it lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from paged import _C

HERE = Path(__file__).parent
FILES = [str(HERE / f"test_ops_{name}.py") for name in ("attention", "elementwise", "linear", "sample")]
BEST = _C.ops.isa()


def run(isa: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PAGED_ISA": isa}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512bf16", "amx"])
def test_every_instruction_set(isa: str) -> None:
    if isa == BEST:
        pytest.skip(f"the op tests of this run use {isa} already")
    probe = run(isa, "-c", "from paged import _C; assert _C.ops.isa() == __import__('os').environ['PAGED_ISA']")
    if "this CPU lacks it" in probe.stderr or "baseline only on Arm" in probe.stderr:
        pytest.skip(f"this CPU has no {isa}")
    assert probe.returncode == 0, probe.stderr
    tests = run(isa, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *FILES)
    assert tests.returncode == 0, tests.stdout[-3000:]


PRODUCTS = """
import hashlib, torch
from paged import _C
from test_ops_linear import QUANTISED, linear, pack_quantised, spiky

threads = _C.ThreadPool(2)
for name in QUANTISED:
    matrix = pack_quantised(threads, name, 133, 768)
    out = [linear(threads, spiky((rows, 768), dtype), matrix)
           for dtype in (torch.float32, torch.bfloat16, torch.float16) for rows in (1, 3, 140)]
    print(name, hashlib.sha256(torch.cat(out).numpy().tobytes()).hexdigest())
"""


def test_integer_products_are_the_same_bits_on_every_instruction_set() -> None:
    seen = {}
    for isa in ("baseline", "avx2", "avx512", "avx512bf16", "amx"):
        done = run(isa, "-c", f"import sys; sys.path.insert(0, {str(HERE)!r})\n{PRODUCTS}")
        if "this CPU lacks it" not in done.stderr and "baseline only on Arm" not in done.stderr:
            assert done.returncode == 0, done.stderr
            seen[isa] = done.stdout
    assert BEST in seen
    assert all(out == seen[BEST] and len(out.splitlines()) == 8 for out in seen.values()), seen


def test_an_unknown_instruction_set_is_refused() -> None:
    probe = run("sse9", "-c", "from paged import _C; _C.ops.isa()")
    assert "PAGED_ISA must be baseline, avx2, avx512, avx512bf16 or amx" in probe.stderr

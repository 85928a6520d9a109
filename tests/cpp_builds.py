# SPDX-License-Identifier: Apache-2.0
"""Builds C++ tests with CMake and runs them with ctest, for the tests in Python that do so.

The build folders (``build/test-*``) stay, so a second run compiles only what changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def find_tool(name: str) -> str | None:
    """The tool beside this interpreter (where pip puts it), else the one on PATH."""
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)


def run(command: list[str]) -> None:
    """Run a command; on failure show everything it printed."""
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if finished.returncode != 0:
        pytest.fail(f"{' '.join(command)}\nexited with {finished.returncode}:\n{finished.stdout}", pytrace=False)


def build_and_run(name: str, options: list[str], target: str, label: str, *, jobs: int = 1) -> None:
    """Build `target` of the whole project in build/`name`, then run the tests that carry `label`, `jobs` at a time."""
    cmake, ctest, ninja = find_tool("cmake"), find_tool("ctest"), find_tool("ninja")
    assert cmake and ctest, "cmake and ctest are needed: pip install 'cmake>=3.24'"
    folder = ROOT / "build" / name
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), "-DPAGED_PYTHON=OFF", "-DPAGED_TESTS=ON", *options]
    if ninja and not (folder / "CMakeCache.txt").exists():
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    run(configure)
    run([cmake, "--build", str(folder), "--target", target, "--parallel", str(os.cpu_count() or 1)])
    test = [ctest, "--test-dir", str(folder), "--output-on-failure", "--no-tests=error", "-L", f"^{label}$"]
    run([*test, "--parallel", str(jobs)])

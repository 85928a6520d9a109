# SPDX-License-Identifier: Apache-2.0
"""Builds the C++ tests under sanitizers and runs them with ctest.

The build folders (``build/test-cpp-*``) stay, so a second run compiles only what changed.
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


def build_and_run(sanitizers: str, target: str, label: str) -> None:
    """Build `target` of the whole project under the sanitizers, then run the tests that carry `label`."""
    cmake, ctest, ninja = find_tool("cmake"), find_tool("ctest"), find_tool("ninja")
    assert cmake and ctest, "cmake and ctest are needed: pip install 'cmake>=3.24'"
    folder = ROOT / "build" / f"test-cpp-{sanitizers.replace(',', '-')}"
    jobs = str(os.cpu_count() or 1)
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), "-DPAGED_PYTHON=OFF", "-DPAGED_TESTS=ON"]
    configure.append(f"-DPAGED_SANITIZE={sanitizers}")
    if ninja and not (folder / "CMakeCache.txt").exists():
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    run(configure)
    run([cmake, "--build", str(folder), "--target", target, "--parallel", jobs])
    run([ctest, "--test-dir", str(folder), "--output-on-failure", "--no-tests=error", "-L", f"^{label}$"])


def test_cpp_under_address_and_undefined_sanitizers() -> None:
    build_and_run("address,undefined", "paged_tests", "cpp")


def test_cpp_threads_under_thread_sanitizer() -> None:
    build_and_run("thread", "paged_thread_tests", "threads")

# SPDX-License-Identifier: Apache-2.0
"""No call of the C++ module, whatever it is given, ends in anything but a result or a named exception."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fuzz_bindings
from binding_calls import all_calls, bound_callables

EXAMPLES = 3 * int(os.environ.get("PAGED_FUZZ_EXAMPLES", "150"))


def test_every_callable_is_called() -> None:
    assert {name.split(" ")[0] for name in all_calls()} == bound_callables()


def test_hostile_calls(tmp_path: Path) -> None:
    """In a process of its own, for a kernel that leaves its arrays would end this one."""
    last = tmp_path / "last"
    run = [sys.executable, "-X", "faulthandler", str(fuzz_bindings.__file__), "--examples", str(EXAMPLES)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([*run, "--log", str(last)], capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, f"{done.stderr[-3000:]}\nthe last call: {last.read_text()[:2000]}"

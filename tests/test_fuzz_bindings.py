# SPDX-License-Identifier: Apache-2.0
"""No call of the C++ module, whatever it is given, ends in anything but a result or a named exception."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fuzz_bindings
from binding_calls import all_calls, bound_callables
from paged import _C

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


def test_a_table_of_tokens_takes_flags_of_any_shape() -> None:
    """As it does offsets; a cast of two dimensions was an error without a name."""
    assert _C.TokenTable(b"abc", [0, 1, 2, 3], np.zeros((3, 1), np.bool_)) is not None
    with pytest.raises(ValueError, match="3 tokens, but is_special of 2"):
        _C.TokenTable(b"abc", [0, 1, 2, 3], np.zeros((1, 2), np.float32))

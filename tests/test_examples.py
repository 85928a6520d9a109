# SPDX-License-Identifier: Apache-2.0
"""Every example runs as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest

ELSEWHERE = {"fastapi_app.py"}  # a server, which never ends: test_web_app.py
FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = [path for path in sorted(FOLDER.glob("*.py")) if path.name not in ELSEWHERE]
NEEDS = {"ray_batch.py": "ray"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(example: Path, real_models: Mapping[str, Path], tmp_path: Path) -> None:
    """The examples name the default model: a cache folder that holds it saves pulling it."""
    if example.name in NEEDS:
        pytest.importorskip(NEEDS[example.name], reason=f"this example needs {NEEDS[example.name]}")
    (tmp_path / "smollm2-135m-instruct.gguf").symlink_to(real_models["smollm2-135m-instruct.gguf"].resolve())
    environment = {**os.environ, "PAGED_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(example)], capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 20
    for picture in tmp_path.glob("*.svg"):
        ElementTree.parse(picture)

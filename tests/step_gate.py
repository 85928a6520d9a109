# SPDX-License-Identifier: Apache-2.0
"""An engine whose steps a test lets through one by one: what is running stays so for as long as the test wants."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import paged


class StepGate:
    """Closed at first. `allow(n)` lets n steps through, `open()` all."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self._open = False

    def allow(self, num_steps: int) -> None:
        self._permits.release(num_steps)

    def open(self) -> None:
        self._open = True
        self._permits.release()

    def pass_one(self) -> None:
        if not self._open:
            assert self._permits.acquire(timeout=60), "a step waited a minute at the gate"


@contextmanager
def gated_llm(folder: Path, **options: Any) -> Iterator[tuple[paged.LLM, StepGate]]:
    """`device="torch"`, for its steps run in Python."""
    from paged.torch_backend.engine_model import TorchEngineModel

    gate, run = StepGate(), TorchEngineModel.run

    def gated_run(self: TorchEngineModel, *arrays: Any) -> Any:
        gate.pass_one()
        return run(self, *arrays)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchEngineModel, "run", gated_run)
        with paged.LLM(folder, dtype="float32", device="torch", **options) as llm:
            try:
                yield llm, gate
            finally:
                gate.open()

# SPDX-License-Identifier: Apache-2.0
"""The devices this build can run a tiny model on, for tests that hold on all of them; waiting for other threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paged
from paged import _C

GPU = "hip" if _C.gpu_runtime() == "hip" else "cuda"
DEVICES = ["cpu", "torch", *([GPU] if _C.gpu_devices()[0] > 0 else [])]


def open_llm(folder: Path, device: str, **options: Any) -> paged.LLM:
    """In float32, with a small pool."""
    return paged.LLM(folder, device=device, **{"dtype": "float32", "kv_cache_bytes": 16 << 20, **options})


def until(condition: Callable[[], bool]) -> None:
    """Waits for what another thread brings about."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "nothing came of it within half a minute"
        time.sleep(0.002)

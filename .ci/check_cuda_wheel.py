#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks a wheel built with PAGED_GPU=cuda, its content being first on sys.path: no sources inside, not too large, and
without a driver it says so."""

import sys
import zipfile
from pathlib import Path

from paged import _C, devices

LIMIT_MIB = 100


def main(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sources = [name for name in archive.namelist() if name.endswith((".h", ".cpp", ".cu", ".cuh", ".hip"))]
    mib = wheel.stat().st_size / 2**20
    assert not sources, f"sources in the wheel: {sources}"
    assert mib <= LIMIT_MIB, f"the wheel has {mib:.0f} MiB, more than {LIMIT_MIB}"
    assert _C.gpu_runtime() == "cuda", f"the wheel was built for {_C.gpu_runtime()}"
    try:
        devices.check_gpu(devices.GpuDevice("cuda", 0))
        state = "its device is there"
    except ValueError as error:
        state = str(error)
        assert "no GPU can be used: " in state, state
    print(f"{wheel.name}: {mib:.1f} MiB; {state}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

# SPDX-License-Identifier: Apache-2.0
"""Every shared GPU kernel on the CPU: GPU threads as fibers, warps of 32, against the CPU backend and plain loops.

.ci/run goes on with warps of 64, random schedules and sanitizers.
"""

from __future__ import annotations

import os

from cpp_builds import build_and_run


def test_gpu_kernels_on_the_emulator() -> None:
    options = ["-DPAGED_GPU=emulation", "-DPAGED_GPU_EMU_WARP=32"]
    build_and_run("test-gpu-emulation", options, "paged_gpu_tests", "gpu", jobs=os.cpu_count() or 1)

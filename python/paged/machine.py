# SPDX-License-Identifier: Apache-2.0
"""What this process may use: cores and memory, with affinity and container limits taken into account."""

from __future__ import annotations

import os
from pathlib import Path


def num_physical_cores() -> int:
    """Physical cores this process may run on (two hardware threads of one core count once); at least 1."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in cpus:
        siblings = _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings or str(cpu))
    return max(1, min(len(cores), _cgroup_cores() or len(cores)))


def available_memory() -> int:
    """Bytes that can be taken without pushing others out, as the system or the container's limit has it."""
    available = 4 << 30
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit = _read("/sys/fs/cgroup/memory.max")
    if limit.isdigit():
        used = _read("/sys/fs/cgroup/memory.current")
        available = min(available, max(0, int(limit) - (int(used) if used.isdigit() else 0)))
    return available


def _cgroup_cores() -> int | None:
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    return max(1, round(int(quota) / int(period))) if quota.isdigit() and period.isdigit() else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""

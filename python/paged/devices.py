# SPDX-License-Identifier: Apache-2.0
"""GPUs as the caller names them and as this build and machine have them, and what of their memory is for the cache.

Asks the extension only; torch is never imported.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from paged import _C

_NAME = re.compile(r"(cuda|hip)(?::(\d{1,4}))?", re.ASCII)
_MIB = 1 << 20
# What an engine takes besides weights, activations and cache: attention's partial results, the scratch of the matrix
# products, the vendor's context and one graph for each batch size.
_RESERVED_BYTES = 768 * _MIB
# Where a GEMM library may lie below a folder of sys.path: the wheels that torch brings, of CUDA 13 and before.
_WHEEL_FOLDERS = ("nvidia/cu13/lib", "nvidia/cublas/lib")


@dataclass(frozen=True)
class GpuDevice:
    """`kind`: "cuda" or "hip"; `index`: which of them."""

    kind: str
    index: int


def parse_gpu(device: str) -> GpuDevice | None:
    """What "cuda", "cuda:1" or "hip" means; None for a device that is no GPU."""
    match = _NAME.fullmatch(device)
    return GpuDevice(match[1], int(match[2] or 0)) if match else None


def check_gpu(device: GpuDevice) -> None:
    """Raises ValueError, saying what to do, unless this build has kernels for the device and the device is there."""
    runtime = _C.gpu_runtime()
    if runtime != device.kind and runtime != "emulation":
        found = "no GPU kernels" if runtime == "none" else f"GPU kernels for {runtime!r} only"
        raise ValueError(
            f"device={device.kind!r}: this build of paged has {found}; with the {device.kind} compiler installed, run "
            f"in the source folder: pip install --force-reinstall --no-deps "
            f"--config-settings=cmake.define.PAGED_GPU={device.kind} ."
        )
    count, reason = _C.gpu_devices()
    if count == 0:
        raise ValueError(f"device={device.kind!r}: no GPU can be used: {reason}")
    if device.index >= count:
        names = ", ".join(f"{device.kind}:{index} ({_C.gpu_properties(index)[0]})" for index in range(count))
        raise ValueError(f"device='{device.kind}:{device.index}': there is {names}")


def describe_gpu(device: GpuDevice) -> str:
    name, _, _, total_bytes = _C.gpu_properties(device.index)
    return f"{device.kind}:{device.index} ({name}, {total_bytes / 2**30:.0f} GiB)"


def check_weights_fit(device: GpuDevice, weight_bytes: int) -> None:
    """Raises MemoryError, before anything is uploaded, if the weights cannot fit."""
    free = _C.gpu_free_bytes(device.index)
    if weight_bytes + _RESERVED_BYTES > free:
        raise MemoryError(
            f"the weights take {_gib(weight_bytes)} and an engine needs {_gib(_RESERVED_BYTES)} besides; of "
            f"{describe_gpu(device)} only {_gib(free)} are free: end what else uses it, or take a smaller model"
        )


def default_kv_cache_bytes(device: GpuDevice, *, arena_bytes: int, utilization: float) -> int:
    """The share `utilization` of the memory that is free now, weights being there, less what the engine has yet to
    allocate. Raises MemoryError if nothing is left."""
    free = _C.gpu_free_bytes(device.index)
    left = int((free - arena_bytes - _RESERVED_BYTES) * utilization)
    if left <= 0:
        raise MemoryError(
            f"no memory is left for the KV cache: {_gib(free)} are free on {describe_gpu(device)} beside the weights, "
            f"activations take {_gib(arena_bytes)} and {_gib(_RESERVED_BYTES)} are reserved: lower "
            "max_num_batched_tokens or max_num_sequences, or end what else uses the GPU"
        )
    return left


def out_of_memory_advice(device: GpuDevice, kv_cache_bytes: int) -> str:
    """What to add to the driver's own words when the engine's memory could not be had."""
    return (
        f"the KV cache was to take {_gib(kv_cache_bytes)} and {_gib(_C.gpu_free_bytes(device.index))} are free on "
        f"{describe_gpu(device)}: lower kv_cache_bytes or gpu_memory_utilization, max_num_batched_tokens or "
        "max_num_sequences"
    )


def blas_folders() -> list[str]:
    """Folders where the vendor's GEMM library may lie, best first; only those that exist. Nothing is imported."""
    wheels = [Path(entry) / folder for entry in sys.path if entry for folder in _WHEEL_FOLDERS]
    toolkits = [Path(home) / "lib64" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    return [str(path) for path in dict.fromkeys(wheels + toolkits) if path.is_dir()]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"

# SPDX-License-Identifier: Apache-2.0
"""Random weights for a model of which only config.json is there: what benchmarks and memory planning need.

All tensors are windows into one pool of random bytes, so that billions of weights cost seconds and at most the memory
of the largest matrix. The window depends on the tensor's name: a model is the same each time it is opened.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from paged.loading.checkpoint import Checkpoint
from paged.loading.errors import CheckpointError
from paged.loading.model_folder import read_json
from paged.loading.raw_tensor import RawTensor
from paged.model_config import ModelConfig
from paged.models import record
from paged.program.ir import ITEMSIZE, WeightSpec

_STANDARD_DEVIATION = 0.02  # what most families initialise their matrices with
# The pool repeats after so many elements: a prime, so that no two rows of a matrix are equal.
_PERIOD = 8_388_593


def open_dummy(path: Path) -> Checkpoint:
    """A checkpoint of random weights for the folder `path`, of which only config.json is read. Raises CheckpointError
    if there is none, ValueError if it is of no model that is known."""
    config = read_json(path, "config.json") if path.is_dir() else None
    if config is None:
        raise CheckpointError(f"{path}: load_format='dummy' takes a folder with a config.json")
    program = record(ModelConfig.from_hf(config), "float32")
    specs = {spec.name: spec for spec in program.weights if spec.rope is None}
    return Checkpoint(path, DummyTensors(specs, _stored_dtype(config)), config, {})


class DummyTensors:
    """Tensors by name, as `Checkpoint` takes them: matrices and biases random, norms one."""

    def __init__(self, specs: Mapping[str, WeightSpec], dtype: Literal["float32", "bfloat16", "float16"]) -> None:
        self._specs = specs
        self._dtype = dtype
        largest = max(math.prod(spec.shape) for spec in specs.values())
        self._pool = _random_pool(largest + _PERIOD, dtype)

    def names(self) -> list[str]:
        return list(self._specs)

    def tensor(self, name: str) -> RawTensor:
        spec = self._specs.get(name)
        if spec is None:
            raise CheckpointError(f"the model has no tensor '{name}'")
        if spec.kind == "vector" and not name.endswith(".bias"):
            ones = np.full(spec.shape, 1.0 - spec.offset, np.float32)
            return RawTensor(ones.view(np.uint8).ravel(), "float32", spec.shape)
        itemsize = ITEMSIZE[self._dtype]
        start = zlib.crc32(name.encode()) % _PERIOD * itemsize
        return RawTensor(self._pool[start : start + math.prod(spec.shape) * itemsize], self._dtype, spec.shape)

    def close(self) -> None:
        """Nothing to unmap."""


def _stored_dtype(config: Mapping[str, Any]) -> Literal["float32", "bfloat16", "float16"]:
    given = config.get("dtype", config.get("torch_dtype"))
    return "float32" if given == "float32" else "float16" if given == "float16" else "bfloat16"


def _random_pool(num_elements: int, dtype: Literal["float32", "bfloat16", "float16"]) -> npt.NDArray[np.uint8]:
    """uint8: normally distributed values of `dtype`, `_PERIOD` of them again and again."""
    values = np.random.default_rng(0).standard_normal(_PERIOD, np.float32) * np.float32(_STANDARD_DEVIATION)
    stored: npt.NDArray[Any] = values
    if dtype == "bfloat16":
        stored = (values.view(np.uint32) >> 16).astype(np.uint16)
    elif dtype == "float16":
        stored = values.astype(np.float16)
    return np.resize(stored, num_elements).view(np.uint8)

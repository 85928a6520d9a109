# SPDX-License-Identifier: Apache-2.0
"""Hands a planned program and its weights to the C++ executor."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
import numpy.typing as npt

from paged import _C
from paged.loading.raw_tensor import RawTensor
from paged.program.ir import Op, Program, Softcap, WeightSpec
from paged.program.plan import Placement, Plan
from paged.program.rope_tables import rope_table

# Attributes that say how a program is read, not how an op is computed.
_UNUSED_BY_KERNELS = {"num_parts"}


class WeightReader(Protocol):
    """The part of a checkpoint that is needed here."""

    def tensor(self, name: str) -> RawTensor: ...


def compile_program(
    program: Program, plan: Plan, weights: WeightReader, threads: _C.ThreadPool, *, max_model_len: int
) -> _C.Program:
    """Packs the weights and returns what `_C.ProgramExecutor` runs. Shows a progress bar if it takes over a second.

    Raises:
        ValueError: a weight is missing, has another shape than the program expects, or a type no kernel reads.
    """
    from paged.progress import ProgressBar

    kv_cache = program.kv_cache
    native = _C.Program(
        num_layers=kv_cache.num_layers, num_kv_heads=kv_cache.num_kv_heads, head_dim=kv_cache.head_dim,
        dtype=program.dtype, arena_bytes=plan.arena_bytes, max_tokens=plan.max_tokens,
        max_logits_rows=plan.max_logits_rows, vocab_size=program.vocab_size, max_positions=max_model_len,
    )  # fmt: skip
    constants = _Constants(native)
    bar = ProgressBar(program.weights, desc="loading weights", unit="tensor", delay=1.0, leave=False)
    for index, spec in enumerate(bar):
        if spec.kind == "matrix":
            constants.matrices[index] = _add_matrix(native, spec, weights.tensor(spec.name), threads)
        else:
            constants.vectors[index] = _vector(spec, weights, max_model_len)
    for op in program.ops:
        _add_op(native, plan, op, constants)
    return native


class _Constants:
    """Where the program's weights are in the native one. A vector moves when an op first uses it, since the biases of
    a linear's parts become one."""

    def __init__(self, native: _C.Program) -> None:
        self.native = native
        self.matrices: dict[int, int] = {}
        self.vectors: dict[int, npt.NDArray[np.float32]] = {}
        self._added: dict[tuple[int, ...], int] = {}

    def matrices_of(self, op: Op) -> list[int]:
        return [self.matrices[weight] for weight in op.weights if weight in self.matrices]

    def vector_of(self, op: Op) -> int:
        """Index of the op's only vector, or of its vectors one after the other; -1 if it has none."""
        key = tuple(weight for weight in op.weights if weight in self.vectors)
        if key and key not in self._added:
            self._added[key] = self.native.add_vector(np.concatenate([self.vectors[weight].ravel() for weight in key]))
        return self._added.get(key, -1)


def _add_matrix(native: _C.Program, spec: WeightSpec, tensor: RawTensor, threads: _C.ThreadPool) -> int:
    _check_shape(spec, tensor)
    rows, cols = tensor.shape
    return native.add_matrix(
        tensor.data, type=tensor.type, rows=rows, cols=cols, row_order=tensor.row_order, threads=threads
    )


def _vector(spec: WeightSpec, weights: WeightReader, max_model_len: int) -> npt.NDArray[np.float32]:
    if spec.rope is not None:
        return rope_table(spec.rope, max_model_len)
    tensor = weights.tensor(spec.name)
    _check_shape(spec, tensor)
    return tensor.dense() + np.float32(spec.offset)


def _check_shape(spec: WeightSpec, tensor: RawTensor) -> None:
    if tuple(tensor.shape) != tuple(spec.shape):
        raise ValueError(
            f"{spec.name}: the checkpoint has shape {list(tensor.shape)}, its config asks for {list(spec.shape)}"
        )


def _add_op(native: _C.Program, plan: Plan, op: Op, constants: _Constants) -> None:
    native.add_op(
        op.kind,
        inputs=[_value(plan.placements[i]) for i in op.inputs],
        outputs=[_value(plan.placements[i]) for i in op.outputs],
        matrices=constants.matrices_of(op),
        vector=constants.vector_of(op),
        attributes=_attributes(op),
    )


def _attributes(op: Op) -> dict[str, float | int | bool | str]:
    given = dataclasses.asdict(op.attributes)
    if isinstance(op.attributes, Softcap):
        given["softcap"] = given.pop("cap")
    return {name: value for name, value in given.items() if name not in _UNUSED_BY_KERNELS}


def _value(placement: Placement) -> _C.Value:
    return _C.Value(
        offset=placement.offset_bytes, rows=placement.rows, cols=placement.cols, row_stride=placement.row_stride,
        dtype=placement.dtype,
    )  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""Hands a planned program and its weights to a C++ executor."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

from paged import _C
from paged.late_progress import late_progress
from paged.loading.raw_tensor import RawTensor
from paged.program.ir import ITEMSIZE, Op, Program, RopeStoreKv, Softcap, WeightSpec
from paged.program.plan import Placement, Plan
from paged.program.rope_tables import rope_table

# Attributes that say how a program is read, not how an op is computed.
_UNUSED_BY_KERNELS = {"num_parts"}

# The progress bar is brought up to date, and a Ctrl-C heard, between so much.
_BYTES_AT_A_TIME = 512 << 20

Group = tuple[int, ...]
"""Indices of weights that become one native constant."""


class WeightReader(Protocol):
    """The part of a checkpoint that is needed here."""

    def tensor(self, name: str) -> RawTensor: ...


def compile_program(
    program: Program,
    plan: Plan,
    weights: WeightReader,
    threads: _C.ThreadPool,
    *,
    max_model_len: int,
    gpu_index: int | None = None,
) -> _C.Program:
    """Packs the weights for the CPU, or uploads them to GPU `gpu_index`, and returns what an executor runs. Shows a
    progress bar if it takes over a second.

    Raises:
        ValueError: a weight is missing, has another shape than the program expects, or a type no kernel reads.
    """
    kv_cache = program.kv_cache
    native = _C.Program(
        num_layers=kv_cache.num_layers, num_kv_heads=kv_cache.num_kv_heads, head_dim=kv_cache.head_dim,
        dtype=program.kv_cache_dtype, arena_bytes=plan.arena_bytes, max_tokens=plan.max_tokens,
        max_logits_rows=plan.max_logits_rows, vocab_size=program.vocab_size, max_positions=max_model_len,
    )  # fmt: skip
    constants = _Constants(native)
    for index, spec in enumerate(program.weights):
        if spec.kind != "matrix":
            constants.vectors[index] = _vector(spec, weights, max_model_len)
    if gpu_index is None:
        _pack_matrices(program, weights, constants, threads)
    else:
        _upload_matrices(program, weights, constants, threads, gpu_index)
    for op in program.ops:
        _add_op(native, plan, op, constants)
    return native


def _pack_matrices(program: Program, weights: WeightReader, constants: _Constants, threads: _C.ThreadPool) -> None:
    """Many in one call, in which nobody needs the GIL. What is not in a file lies in memory, and is packed at once."""
    indices = [index for index, spec in enumerate(program.weights) if spec.kind == "matrix"]
    waiting: list[_C.MatrixSource] = []
    num_bytes = 0
    for done, index in enumerate(late_progress(indices, desc="loading weights", unit="matrix"), start=1):
        tensor = _tensor(program.weights[index], weights)
        waiting.append(_source(tensor))
        num_bytes += tensor.data.size
        constants.matrices[index,] = done - 1
        if num_bytes >= _BYTES_AT_A_TIME or tensor.unload is None or done == len(indices):
            constants.native.add_matrices(sources=waiting, threads=threads)
            waiting, num_bytes = [], 0


def _upload_matrices(
    program: Program, weights: WeightReader, constants: _Constants, threads: _C.ThreadPool, gpu_index: int
) -> None:
    for group in late_progress(_stacks(program), desc="loading weights", unit="matrix"):
        tensors = [_tensor(program.weights[index], weights) for index in group]
        constants.matrices[group] = constants.native.add_stacked_matrix(
            sources=[_source(tensor) for tensor in tensors], dtype=program.dtype, gpu=gpu_index, threads=threads
        )
        for tensor in tensors:
            if tensor.unload is not None:
                tensor.unload()


def stacked_weight_bytes(program: Program) -> int:
    """Bytes of the matrices that a GPU holds, in the program's dtype."""
    shapes = (program.weights[index].shape for group in _stacks(program) for index in group)
    return sum(math.prod(shape) for shape in shapes) * ITEMSIZE[program.dtype]


def _stacks(program: Program) -> list[Group]:
    """The matrices of each op, once: a GPU has the parts of a linear under each other, as one matrix."""
    of_ops = (tuple(weight for weight in op.weights if program.weights[weight].kind == "matrix") for op in program.ops)
    return list(dict.fromkeys(group for group in of_ops if group))


class _Constants:
    """Where the program's weights are in the native one. A vector moves when an op first uses it, since the biases of
    a linear's parts become one."""

    def __init__(self, native: _C.Program) -> None:
        self.native = native
        self.matrices: dict[Group, int] = {}
        self.vectors: dict[int, npt.NDArray[np.float32]] = {}
        self._added: dict[Group, int] = {}

    def matrices_of(self, op: Op) -> list[int]:
        """One native matrix for all of the op's where they were stacked, else one for each."""
        group = tuple(weight for weight in op.weights if weight not in self.vectors)
        if group in self.matrices:
            return [self.matrices[group]]
        return [self.matrices[weight,] for weight in group]

    def vectors_of(self, op: Op) -> tuple[int, int]:
        """Index of the op's only vector, or of its vectors one after the other, and of the norms of a rope's heads,
        which do not follow the table that all layers share; -1 for what it has not."""
        vectors = tuple(weight for weight in op.weights if weight in self.vectors)
        if isinstance(op.attributes, RopeStoreKv):
            return self._added_once(vectors[:1]), self._added_once(vectors[1:])
        return self._added_once(vectors), -1

    def _added_once(self, key: Group) -> int:
        if key and key not in self._added:
            self._added[key] = self.native.add_vector(np.concatenate([self.vectors[weight].ravel() for weight in key]))
        return self._added.get(key, -1)


def _tensor(spec: WeightSpec, weights: WeightReader) -> RawTensor:
    tensor = weights.tensor(spec.name)
    _check_shape(spec, tensor)
    return tensor


def _source(tensor: RawTensor) -> _C.MatrixSource:
    rows, cols = tensor.shape
    return tensor.data, tensor.type, rows, cols, tensor.row_order


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
    vector, head_norms = constants.vectors_of(op)
    native.add_op(
        op.kind,
        inputs=[_value(plan.placements[i]) for i in op.inputs],
        outputs=[_value(plan.placements[i]) for i in op.outputs],
        matrices=constants.matrices_of(op),
        vector=vector,
        head_norms=head_norms,
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

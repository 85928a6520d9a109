# SPDX-License-Identifier: Apache-2.0
"""Interprets a program, fused or not, planned or not, with plain torch ops on any torch device.

Owns its weights and its paged KV cache. One Python call per op and a loop over sequences in attention: made to be
read and trusted, not to be fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import torch

from paged.program.ir import Op, Program, Rows, Value, WeightSpec
from paged.program.plan import Plan
from paged.program.rope_tables import rope_table
from paged.torch_backend.kernels import KERNELS, Step
from paged.torch_backend.kv_cache import KvCache
from paged.torch_backend.step_batch import StepBatch, prompt_batch
from paged.torch_backend.storage import DTYPES, ArenaStorage, FreshStorage


class TorchExecutor:
    """A program with its weights and KV cache.

    Args:
        program: recorded by `paged.models.record`; any subset of the passes may have run.
        weights: dense tensors by checkpoint name, as stored there (offsets are added here); cast to `dtype`.
        dtype: of activations, matrices and, unless the program names another, cache; by default the program's. float32
            and float64 are wider choices, the latter for references. Norm weights, biases and sums are never narrower
            than float32.
        num_blocks, block_size: of the KV cache.
        plan: run inside this plan's arena, which proves the plan; needs the program's own dtype.

    Raises:
        ValueError: a weight is missing or has another shape; a plan meets another dtype; a dtype is narrower than the
            program's (record the program in it instead).
    """

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, npt.NDArray[np.float32] | torch.Tensor],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        num_blocks: int = 64,
        block_size: int = 16,
        plan: Plan | None = None,
    ) -> None:
        self.program = program
        self.device = torch.device(device)
        self.dtype = DTYPES[program.dtype] if dtype is None else dtype
        self.accumulator = torch.float64 if self.dtype == torch.float64 else torch.float32
        if self.dtype not in (DTYPES[program.dtype], torch.float32, torch.float64):
            raise ValueError(f"dtype must be the program's {program.dtype}, float32 or float64, got {self.dtype}")
        if plan is not None and self.dtype != DTYPES[program.dtype]:
            raise ValueError(f"the plan is for {program.dtype}, the executor was asked for {self.dtype}")
        self.plan = plan
        self.block_size = block_size
        self.num_blocks = num_blocks
        self._tables_rows = min(program.max_positions, num_blocks * block_size)
        self.weights = [self._load(spec, weights) for spec in program.weights]
        self.kv_cache = KvCache(program.kv_cache, num_blocks * block_size, self._cache_dtype(), self.device)

    @torch.no_grad()
    def run(self, batch: StepBatch) -> torch.Tensor:
        """Runs one step and stores its keys and values. Returns the logits [S, vocab_size] in float32, or in float64
        if the executor computes in it. Raises ValueError for positions and slots beyond the executor's limits."""
        self._check(batch)
        step = Step(batch, self.device, self.block_size, self.accumulator, self.kv_cache)
        storage: ArenaStorage | FreshStorage
        if self.plan is None:
            storage = FreshStorage(self.program)
        else:
            rows: dict[Rows, int] = {"tokens": len(batch.token_ids), "logits": len(batch.logits_rows)}
            storage = ArenaStorage(self.program, self.plan, rows, self.device)
        for op in self.program.ops:
            self._run_op(op, step, storage)
        return storage.read(self.program.logits).clone()

    def forward(self, token_ids: npt.ArrayLike) -> torch.Tensor:
        """Logits [len(token_ids), vocab_size] of every position of one prompt. Overwrites the cache from block 0."""
        return self.run(prompt_batch(token_ids, self.block_size))

    def copy_blocks(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Copies whole blocks (source, destination) in every layer, one pair after the other."""
        self.kv_cache.copy_blocks(pairs, self.block_size)

    def _run_op(self, op: Op, step: Step, storage: ArenaStorage | FreshStorage) -> None:
        inputs = [storage.read(value) for value in op.inputs]
        weights = [self.weights[weight] for weight in op.weights]
        dtypes = [self._torch_dtype(self.program.values[value]) for value in op.outputs]
        if op.kind == "linear" and dtypes != [self.dtype]:  # logits are not rounded to the activations' dtype
            inputs, weights = ([x.to(dtypes[0]) for x in tensors] for tensors in (inputs, weights))
        results = KERNELS[op.kind](step, op.attributes, inputs, weights)
        for value, result, dtype in zip(op.outputs, results, dtypes, strict=True):
            storage.write(value, result.to(dtype))

    def _torch_dtype(self, value: Value) -> torch.dtype:
        """float32 values of a narrower program stay float32 (or wider), the others follow the executor."""
        return self.accumulator if value.dtype == "float32" else self.dtype

    def _cache_dtype(self) -> torch.dtype:
        """What the program asks for; where it leaves that open, the executor's."""
        match self.program.kv_cache.dtype:
            case None:
                return self.dtype
            case "int8":
                return torch.int8
            case dtype:
                return DTYPES[dtype]

    def _load(self, spec: WeightSpec, weights: Mapping[str, npt.NDArray[np.float32] | torch.Tensor]) -> torch.Tensor:
        if spec.rope is not None:
            return torch.from_numpy(rope_table(spec.rope, self._tables_rows)).to(self.device, self.accumulator)
        if spec.name not in weights:
            raise ValueError(f"the weights lack {spec.name} {list(spec.shape)}")
        found = weights[spec.name]
        tensor = torch.from_numpy(found) if isinstance(found, np.ndarray) else found.detach()
        if tuple(tensor.shape) != spec.shape:
            raise ValueError(f"{spec.name} has shape {list(tensor.shape)}, the program expects {list(spec.shape)}")
        if spec.kind == "matrix":
            return tensor.to(self.device, self.dtype)
        return tensor.to(self.device, self.accumulator) + spec.offset

    def _check(self, batch: StepBatch) -> None:
        if batch.positions.max(initial=0) >= self._tables_rows:
            raise ValueError(
                f"position {batch.positions.max()} is beyond the {self._tables_rows} that the context of "
                f"{self.program.max_positions} and the cache of {self.num_blocks} x {self.block_size} slots allow"
            )
        if batch.slot_mapping.max(initial=0) >= self.num_blocks * self.block_size:
            raise ValueError(f"slot {batch.slot_mapping.max()} is beyond {self.num_blocks} blocks of {self.block_size}")

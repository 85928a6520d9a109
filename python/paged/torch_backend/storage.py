# SPDX-License-Identifier: Apache-2.0
"""Where the values of a step live: each in a tensor of its own, or all in the arena of a plan.

Reads are contiguous, views too: torch computes strided elements in another code path, to other last bits, and a value
must not depend on where it lies.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from paged.program.ir import DType, Program, Rows
from paged.program.plan import Plan

DTYPES: Mapping[DType, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class FreshStorage:
    """A new tensor for every value; views are narrowed from their bases."""

    def __init__(self, program: Program) -> None:
        self.values = program.values
        self.tensors: dict[int, torch.Tensor] = {}

    def read(self, value: int) -> torch.Tensor:
        spec = self.values[value]
        if spec.base is None:
            return self.tensors[value]
        return self.tensors[spec.base].narrow(1, spec.column, spec.cols).contiguous()

    def write(self, value: int, tensor: torch.Tensor) -> None:
        self.tensors[value] = tensor


class ArenaStorage:
    """Values at their planned places in one buffer of bytes, which starts as NaNs so that stray reads show."""

    def __init__(self, program: Program, plan: Plan, rows: Mapping[Rows, int], device: torch.device) -> None:
        if rows["tokens"] > plan.max_tokens or rows["logits"] > plan.max_logits_rows:
            raise ValueError(f"the plan is for {plan.max_tokens} tokens and {plan.max_logits_rows} rows, got {rows}")
        self.plan = plan
        self.rows = rows
        self.arena = torch.full((plan.arena_bytes,), 0xFF, dtype=torch.uint8, device=device)

    def read(self, value: int) -> torch.Tensor:
        return self._place(value).contiguous()

    def write(self, value: int, tensor: torch.Tensor) -> None:
        self._place(value).copy_(tensor)

    def _place(self, value: int) -> torch.Tensor:
        place = self.plan.placements[value]
        arena = self.arena.view(DTYPES[place.dtype])
        shape = (self.rows[place.rows], place.cols)
        return arena.as_strided(shape, (place.row_stride, 1), place.offset_bytes // arena.itemsize)

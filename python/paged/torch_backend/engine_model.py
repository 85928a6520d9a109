# SPDX-License-Identifier: Apache-2.0
"""A TorchExecutor as the engine calls it: numpy arrays in, numpy logits out, on the engine thread, with the GIL."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paged.torch_backend.interpreter import TorchExecutor
from paged.torch_backend.step_batch import Int32s, StepBatch


class TorchEngineModel:
    """What `_C.Engine` takes in place of a native executor."""

    def __init__(self, executor: TorchExecutor) -> None:
        self._executor = executor
        self.vocab_size = executor.program.vocab_size

    def run(self, *arrays: Int32s) -> npt.NDArray[np.float32]:
        """`arrays` are the fields of StepBatch in order. Returns logits [len(logits_rows), vocab_size]."""
        return self._executor.run(StepBatch(*arrays)).float().cpu().numpy()

    def copy_blocks(self, source: Int32s, destination: Int32s) -> None:
        self._executor.copy_blocks(zip(source.tolist(), destination.tolist(), strict=True))

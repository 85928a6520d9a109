# SPDX-License-Identifier: Apache-2.0
"""Runs programs with plain torch ops: the oracle of every op and model, and the way onto any torch device."""

from paged.torch_backend.interpreter import TorchExecutor
from paged.torch_backend.step_batch import StepBatch

__all__ = ["StepBatch", "TorchExecutor"]

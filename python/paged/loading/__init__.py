# SPDX-License-Identifier: Apache-2.0
"""Models on disk: finding, fetching, and reading them. Files are data from strangers and are never executed."""

from paged.loading.checkpoint import Checkpoint, open_checkpoint
from paged.loading.errors import CheckpointError
from paged.loading.pull import pull
from paged.loading.raw_tensor import RawTensor
from paged.loading.resolve import resolve

__all__ = ["Checkpoint", "CheckpointError", "RawTensor", "open_checkpoint", "pull", "resolve"]

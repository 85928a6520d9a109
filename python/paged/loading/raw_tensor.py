# SPDX-License-Identifier: Apache-2.0
"""One weight as it lies in a checkpoint: borrowed bytes, and what is needed to read them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paged.loading.dequantize import dequantize


@dataclass(frozen=True, eq=False, slots=True)
class RawTensor:
    """`data` is a view of the mapped file and keeps it mapped; nothing is copied before `dense()`.

    Row i of the tensor is row `row_order[i]` of `data` (None: as they lie), and its values are the stored values plus
    `offset`. GGUF needs both: Llama's query and key rows are permuted for rope, Gemma's norm weights stored plus one.
    """

    data: npt.NDArray[np.uint8]  # [num_bytes]
    type: str  # a key of dequantize.BLOCKS
    shape: tuple[int, ...]
    row_order: npt.NDArray[np.int32] | None = None  # [shape[0]]
    offset: float = 0.0
    unload: Callable[[], None] | None = None  # lets the memory under `data` go; the file still has it

    def dense(self) -> npt.NDArray[np.float32]:
        """float32 [shape], a copy of its own."""
        values = dequantize(self.data, self.type, self.shape)
        if self.row_order is not None:
            values = values[self.row_order]
        return values + np.float32(self.offset) if self.offset else values

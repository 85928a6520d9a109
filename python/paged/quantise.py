# SPDX-License-Identifier: Apache-2.0
"""Float checkpoints read as quantised ones: matrices become GGUF blocks of 32 weights the moment they are taken."""

from __future__ import annotations

import numpy as np

from paged import _C
from paged.config import Quantize
from paged.loading.checkpoint import Checkpoint
from paged.loading.raw_tensor import RawTensor

_FLOATS = ("float32", "bfloat16", "float16")
_BLOCK = 32
_BLOCK_BYTES = {"q8_0": 34, "q4_1": 20}


class QuantisedCheckpoint(Checkpoint):
    """`checkpoint` with its float matrices in 8 bits, or in 4 and the embedding and the output head in 8. What is
    quantised already stays as it is. Closing it closes `checkpoint`.

    Raises:
        ValueError: no matrix has floats; later, a matrix has rows that are no multiple of 32 long, or no finite values.
    """

    def __init__(self, checkpoint: Checkpoint, quantize: Quantize, threads: _C.ThreadPool) -> None:
        super().__init__(checkpoint.path, checkpoint, checkpoint.config, checkpoint.generation_config, checkpoint.gguf)
        self._quantize = quantize
        self._threads = threads
        stored = {tensor.type for tensor in map(checkpoint.tensor, checkpoint.names()) if len(tensor.shape) == 2}
        if not stored.intersection(_FLOATS):
            raise ValueError(
                f"quantize='{quantize}': the weights of {checkpoint.path} are {', '.join(sorted(stored))} already; "
                "leave quantize out, or take a checkpoint in bfloat16, float16 or float32"
            )

    def tensor(self, name: str) -> RawTensor:
        tensor = super().tensor(name)
        if len(tensor.shape) != 2 or tensor.type not in _FLOATS:
            return tensor
        rows, cols = tensor.shape
        if cols % _BLOCK:
            raise ValueError(
                f"quantize='{self._quantize}': {name} has rows of {cols} weights; they must be a multiple of {_BLOCK}"
            )
        coarse = self._quantize == "int4" and not name.endswith(("embed_tokens.weight", "lm_head.weight"))
        kind = "q4_1" if coarse else "q8_0"
        blocks = np.empty(rows * cols // _BLOCK * _BLOCK_BYTES[kind], np.uint8)
        _C.ops.quantize(self._threads, tensor.data, tensor.type, rows, cols, blocks, kind)
        if tensor.unload is not None:
            tensor.unload()  # what is packed now are the blocks
        return RawTensor(blocks, kind, tensor.shape, tensor.row_order, tensor.offset)

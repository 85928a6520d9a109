# SPDX-License-Identifier: Apache-2.0
"""Float checkpoints read as quantised ones: matrices become GGUF blocks of 32 weights the moment they are taken, or
once and for all in a file beside the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from paged import _C
from paged.config import Quantize
from paged.late_progress import late_progress
from paged.loading.checkpoint import Checkpoint
from paged.loading.errors import CheckpointError
from paged.loading.fingerprint import fingerprint
from paged.loading.mapped_file import Bytes
from paged.loading.quantised_file import QuantisedFile, write_quantised_file
from paged.loading.raw_tensor import RawTensor

_FLOATS = ("float32", "bfloat16", "float16")
_BLOCK = 32
_BLOCK_BYTES = {"q8_0": 34, "q4_1": 20}


class QuantisedCheckpoint(Checkpoint):
    """`checkpoint` with its float matrices in 8 bits, or in 4 and the embedding and the output head in 8. What is
    quantised already stays as it is. Closing it closes `checkpoint`.

    `cache`: they are read from a file beside the model, which is written first where there is none of these weights.

    Raises:
        ValueError: no matrix has floats; with `cache` or later, a matrix has rows that are no multiple of 32 long, or
            no finite values.
        OSError: the file cannot be written.
    """

    def __init__(
        self, checkpoint: Checkpoint, quantize: Quantize, threads: _C.ThreadPool, *, cache: bool = False
    ) -> None:
        super().__init__(checkpoint.path, checkpoint, checkpoint.config, checkpoint.generation_config, checkpoint.gguf)
        self._quantize = quantize
        self._threads = threads
        stored = {tensor.type for tensor in map(checkpoint.tensor, checkpoint.names()) if len(tensor.shape) == 2}
        if not stored.intersection(_FLOATS):
            raise ValueError(
                f"quantize='{quantize}': the weights of {checkpoint.path} are {', '.join(sorted(stored))} already; "
                "leave quantize out, or take a checkpoint in bfloat16, float16 or float32"
            )
        self._file = self._cached(checkpoint) if cache else None

    def tensor(self, name: str) -> RawTensor:
        tensor = super().tensor(name)
        if not _is_float_matrix(tensor):
            return tensor
        kept = None if self._file is None else self._file.tensor(name, self._kind(name), tensor.shape)
        if kept is None:
            if self._file is not None:  # damaged: this load rounds anew, the next one writes the file anew
                cache_path(self.path, self._quantize).unlink(missing_ok=True)
            kept = RawTensor(self._blocks(name, tensor), self._kind(name), tensor.shape)
        return replace(kept, row_order=tensor.row_order, offset=tensor.offset)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()

    def _kind(self, name: str) -> str:
        coarse = self._quantize == "int4" and not name.endswith(("embed_tokens.weight", "lm_head.weight"))
        return "q4_1" if coarse else "q8_0"

    def _blocks(self, name: str, tensor: RawTensor) -> Bytes:
        rows, cols = tensor.shape
        if cols % _BLOCK:
            raise ValueError(
                f"quantize='{self._quantize}': {name} has rows of {cols} weights; they must be a multiple of {_BLOCK}"
            )
        kind = self._kind(name)
        blocks = np.empty(rows * cols // _BLOCK * _BLOCK_BYTES[kind], np.uint8)
        _C.ops.quantize(self._threads, tensor.data, tensor.type, rows, cols, blocks, kind)
        if tensor.unload is not None:
            tensor.unload()  # what is packed now are the blocks
        return blocks

    def _cached(self, checkpoint: Checkpoint) -> QuantisedFile:
        path, source = cache_path(self.path, self._quantize), f"{self._quantize} {_identity(checkpoint)}"
        try:
            return QuantisedFile(path, source)
        except CheckpointError:
            pass  # none, or one of other weights, or a damaged one: it is written anew
        try:
            write_quantised_file(path, source, self._rounded())
        except OSError as error:
            raise OSError(
                f"quantize_cache=True: {path} cannot be written: {error}; leave quantize_cache out"
            ) from error
        return QuantisedFile(path, source)

    def _rounded(self) -> Iterator[tuple[str, str, Bytes]]:
        for name in late_progress(self.names(), desc="quantising weights", unit="matrix"):
            tensor = super().tensor(name)
            if _is_float_matrix(tensor):
                yield name, self._kind(name), self._blocks(name, tensor)


def cache_path(model: Path, quantize: Quantize) -> Path:
    """Of the file beside the model: in its folder, or next to its .gguf file."""
    if model.is_dir():
        return model / f"paged-{quantize}.quantised"
    return model.with_name(f"{model.name}-{quantize}.quantised")


def _is_float_matrix(tensor: RawTensor) -> bool:
    return len(tensor.shape) == 2 and tensor.type in _FLOATS


def _identity(checkpoint: Checkpoint) -> str:
    """Of the weights, and of the files that hold them: name, size and time of change of each."""
    path = checkpoint.path
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"{fingerprint(checkpoint)} {stats}"

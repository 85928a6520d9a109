# SPDX-License-Identifier: Apache-2.0
"""The weights of a GGUF file under their Hugging Face names, and as Hugging Face means them.

llama.cpp's converter changes two things on the way, which are undone here without touching a stored byte: it permutes
the query and key rows of Llama for its interleaved rope, and adds one to Gemma's norm weights.
"""

from functools import partial

import numpy as np
import numpy.typing as npt

from paged.loading.errors import CheckpointError
from paged.loading.gguf_config import architecture_of
from paged.loading.gguf_file import GgufFile
from paged.loading.gguf_names import hugging_face_name
from paged.loading.gguf_rope import FREQUENCIES
from paged.loading.raw_tensor import RawTensor

_PERMUTED = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")


class GgufTensors:
    """Owns the file. `num_heads`, `num_key_value_heads` as in the model's config."""

    def __init__(self, file: GgufFile, num_heads: int, num_key_value_heads: int) -> None:
        """Raises CheckpointError on a tensor that the architecture does not have: the model would compute nonsense."""
        self._file = file
        self._architecture = architecture_of(file)
        self._num_heads = {"q_proj": num_heads, "k_proj": num_key_value_heads}
        self._stored_as: dict[str, str] = {}
        for stored in file.tensors:
            name = hugging_face_name(stored, self._architecture)
            if name is not None:
                self._stored_as[name] = stored
            elif stored != FREQUENCIES:
                raise CheckpointError(f"{file.path}: tensor '{stored}': not one of a {self._architecture} model")

    def names(self) -> list[str]:
        return list(self._stored_as)

    def tensor(self, name: str) -> RawTensor:
        if name not in self._stored_as:
            raise CheckpointError(f"{self._file.path}: has no tensor '{name}' among its {len(self._stored_as)}")
        stored = self._file.tensors[self._stored_as[name]]
        offset = -1.0 if self._architecture == "gemma3" and name.endswith("norm.weight") else 0.0
        return RawTensor(
            self._file.view(stored), stored.type, stored.shape, self._row_order(name, stored.shape[0]), offset,
            partial(self._file.unload, stored),
        )  # fmt: skip

    def close(self) -> None:
        self._file.close()

    def _row_order(self, name: str, num_rows: int) -> npt.NDArray[np.int32] | None:
        """int32 [num_rows] for Llama's queries and keys, else None."""
        if self._architecture != "llama" or not name.endswith(_PERMUTED):
            return None
        heads = self._num_heads[name.split(".")[-2]]
        if num_rows % (2 * heads):
            raise CheckpointError(f"{self._file.path}: tensor '{name}': {num_rows} rows cannot be {heads} even heads")
        stored_rows = np.arange(num_rows, dtype=np.int32).reshape(heads, -1, 2)
        return stored_rows.swapaxes(1, 2).reshape(-1)

# SPDX-License-Identifier: Apache-2.0
"""A model on disk: its configuration and its weights under Hugging Face names, whatever format holds them."""

from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from paged.loading.errors import CheckpointError
from paged.loading.gguf_config import generation_config, hugging_face_config
from paged.loading.gguf_file import GgufFile
from paged.loading.gguf_tensors import GgufTensors
from paged.loading.model_folder import read_json
from paged.loading.raw_tensor import RawTensor
from paged.loading.safetensors_folder import SafetensorsFolder


class TensorSource(Protocol):
    """Named tensors of an open file or folder."""

    def names(self) -> list[str]: ...
    def tensor(self, name: str) -> RawTensor: ...
    def close(self) -> None: ...


class Checkpoint:
    """`config` and `generation_config` as in Hugging Face's JSON files; `gguf` is the file behind, if it is one.

    A context manager. Tensors taken from it stay valid after `close()`.
    """

    def __init__(
        self,
        path: Path,
        source: TensorSource,
        config: dict[str, Any],
        generation_config: dict[str, Any],
        gguf: GgufFile | None = None,
    ) -> None:
        self.path = path
        self.config = config
        self.generation_config = generation_config
        self.gguf = gguf
        self._source = source

    @property
    def dtype(self) -> Literal["float32", "bfloat16", "float16"]:
        """float32, bfloat16 or float16: what its embedding is stored in; bfloat16 if that is quantised."""
        embedding = next((name for name in self.names() if name.endswith("embed_tokens.weight")), None)
        stored = self.tensor(embedding).type if embedding else "float32"
        return "float32" if stored == "float32" else "float16" if stored == "float16" else "bfloat16"

    def names(self) -> list[str]:
        return self._source.names()

    def tensor(self, name: str) -> RawTensor:
        """The stored bytes, mapped, not copied. Raises CheckpointError if there is no such tensor."""
        return self._source.tensor(name)

    def dense(self, name: str) -> npt.NDArray[np.float32]:
        """float32 [shape of the tensor], dequantised, rows in Hugging Face's order; a copy."""
        return self.tensor(name).dense()

    def close(self) -> None:
        """Unmaps what no tensor uses any more. Idempotent."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a .gguf file, or a folder with config.json and safetensors. Nothing in it is ever executed.

    Cost: reading headers; weights are mapped into memory and read when used. Raises CheckpointError, naming the file
    and what was found and expected.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    file = GgufFile(path)
    try:
        config = hugging_face_config(file)
        source = GgufTensors(file, config["num_attention_heads"], config["num_key_value_heads"])
        return Checkpoint(path, source, config, generation_config(file), file)
    except BaseException:
        file.close()
        raise


def _open_folder(folder: Path) -> Checkpoint:
    config = read_json(folder, "config.json")
    if config is None:
        raise CheckpointError(f"{folder}: expected a config.json in the model folder, found none")
    return Checkpoint(folder, SafetensorsFolder(folder), config, read_json(folder, "generation_config.json") or {})

# SPDX-License-Identifier: Apache-2.0
"""The weights of a Hugging Face folder: model.safetensors, or the shards that model.safetensors.index.json names."""

from pathlib import Path

from paged.loading.errors import CheckpointError
from paged.loading.model_folder import file_in, read_json
from paged.loading.raw_tensor import RawTensor
from paged.loading.safetensors_file import SafetensorsFile

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class SafetensorsFolder:
    """Owns the mapped shards. Tensor names are unique over all of them."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError if weights are missing, broken, or not where the index says."""
        self._folder = folder
        self._shards: list[SafetensorsFile] = []
        self._shard_of: dict[str, SafetensorsFile] = {}
        try:
            if file_in(folder, _SINGLE).exists():
                self._open(_SINGLE)
            else:
                self._open_sharded()
        except BaseException:
            self.close()
            raise

    def names(self) -> list[str]:
        return list(self._shard_of)

    def tensor(self, name: str) -> RawTensor:
        if name not in self._shard_of:
            raise CheckpointError(f"{self._folder}: has no tensor '{name}' among its {len(self._shard_of)}")
        return self._shard_of[name].tensor(name)

    def close(self) -> None:
        for shard in self._shards:
            shard.close()

    def _open(self, file_name: str) -> set[str]:
        shard = SafetensorsFile(file_in(self._folder, file_name))
        self._shards.append(shard)
        names = set(shard.names())
        if twice := names & self._shard_of.keys():
            raise CheckpointError(f"{self._folder / file_name}: tensor '{min(twice)}' is in an earlier shard too")
        self._shard_of |= dict.fromkeys(shard.names(), shard)
        return names

    def _open_sharded(self) -> None:
        index = read_json(self._folder, _INDEX)
        if index is None:
            raise CheckpointError(
                f"{self._folder}: expected {_SINGLE} or {_INDEX}, found neither; pickled weights (.bin, .pt) are never "
                "loaded: convert them to safetensors"
            )
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise CheckpointError(f"{self._folder / _INDEX}: expected an object 'weight_map' of tensor -> file name")
        for file_name in sorted(set(weight_map.values())):
            if not file_name.endswith(".safetensors"):
                raise CheckpointError(f"{self._folder / _INDEX}: expected .safetensors shards, found {file_name!r}")
            listed = {tensor for tensor, shard in weight_map.items() if shard == file_name}
            if missing := listed - self._open(file_name):
                raise CheckpointError(f"{self._folder / file_name}: lacks tensor '{min(missing)}' that {_INDEX} lists")

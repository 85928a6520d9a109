# SPDX-License-Identifier: Apache-2.0
"""Safetensors files and folders: the safetensors package writes them, and judges which broken ones are broken."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from paged.loading import CheckpointError, open_checkpoint
from paged.loading.safetensors_file import SafetensorsFile


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "model.embed_tokens.weight": torch.randn(7, 3, generator=generator).bfloat16(),
        "half": torch.randn(5, generator=generator).half(),
        "single": torch.randn(2, 3, 4, generator=generator),
        "ids": torch.arange(3),
        "empty": torch.zeros(0, 4),
    }


def _folder(path: Path, shards: dict[str, dict[str, torch.Tensor]], weight_map: dict[str, str] | None = None) -> Path:
    path.mkdir()
    (path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    for name, tensors in shards.items():
        save_file(tensors, path / name)
    if weight_map is not None:
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


def test_tensors_come_back_whatever_their_float_type(tmp_path: Path) -> None:
    tensors = _tensors()
    with open_checkpoint(_folder(tmp_path / "m", {"model.safetensors": tensors})) as checkpoint:
        assert set(checkpoint.names()) == set(tensors)
        assert checkpoint.dtype == "bfloat16"
        for name in ("model.embed_tokens.weight", "half", "single", "empty"):
            dense = checkpoint.dense(name)
            assert dense.dtype == np.float32
            np.testing.assert_array_equal(dense, tensors[name].float().numpy())
        with pytest.raises(CheckpointError, match=r"tensor 'ids': expected dtype F32, F16, BF16, found I64"):
            checkpoint.tensor("ids")
        with pytest.raises(CheckpointError, match="no tensor 'absent'"):
            checkpoint.tensor("absent")


def test_a_tensor_outlives_its_checkpoint(tmp_path: Path) -> None:
    tensors = _tensors()
    with open_checkpoint(_folder(tmp_path / "m", {"model.safetensors": tensors})) as checkpoint:
        raw = checkpoint.tensor("single")
    checkpoint.close()
    assert not raw.data.flags.writeable
    np.testing.assert_array_equal(raw.dense(), tensors["single"].numpy())


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    a, b = {"x": torch.ones(2)}, {"y": torch.zeros(3)}
    weight_map = {"x": "a.safetensors", "y": "b.safetensors"}
    with open_checkpoint(_folder(tmp_path / "m", {"a.safetensors": a, "b.safetensors": b}, weight_map)) as checkpoint:
        assert sorted(checkpoint.names()) == ["x", "y"]
        np.testing.assert_array_equal(checkpoint.dense("y"), np.zeros(3))


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"x": "../m/a.safetensors"}, "plain name"),
        ({"x": "/etc/passwd.safetensors"}, "plain name"),
        ({"x": ".."}, ".safetensors shards"),
        ({"x": "a.bin"}, ".safetensors shards"),
        ({"x": 1}, "weight_map"),
        ({"z": "a.safetensors"}, "lacks tensor 'z'"),
        ({"x": "a.safetensors", "y": "copy.safetensors"}, "in an earlier shard too"),
        ({"x": "a.safetensors", "y": "gone.safetensors"}, "found none"),
    ],
)
def test_an_index_cannot_lead_astray(tmp_path: Path, weight_map: dict[str, str], message: str) -> None:
    shard = {"x": torch.ones(2)}
    folder = _folder(tmp_path / "m", {"a.safetensors": shard, "copy.safetensors": shard}, weight_map)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_links_out_of_the_folder_are_refused_but_the_hub_cache_works(tmp_path: Path) -> None:
    real = _folder(tmp_path / "real", {"model.safetensors": _tensors()})
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("config.json", "model.safetensors"):
        (linked / name).symlink_to(real / name)
    with pytest.raises(CheckpointError, match="outside the model folder"):
        open_checkpoint(linked)
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in ("config.json", "model.safetensors"):
        (blobs / name).write_bytes((real / name).read_bytes())
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    with open_checkpoint(snapshot) as checkpoint:
        assert "single" in checkpoint.names()


def test_what_is_missing_or_not_json_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(folder)
    for text in ("{", "[]", '{"a": 1, "a": 2}', "[" * 100_000, '{"a": ' + "9" * 10_000 + "}", "\udcff"):
        (folder / "config.json").write_text(text, errors="surrogateescape")
        with pytest.raises(CheckpointError, match=r"config\.json"):
            open_checkpoint(folder)
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="never loaded"):
        open_checkpoint(folder)


def _accepts(path: Path) -> bool:
    try:
        file = SafetensorsFile(path)
    except CheckpointError:
        return False
    for name in file.names():
        try:
            assert file.tensor(name).dense().shape is not None
        except CheckpointError as error:
            assert "expected dtype" in str(error)
    file.close()
    return True


def _oracle_accepts(path: Path) -> bool:
    try:
        with safe_open(path, "pt"):
            return True
    except (SafetensorError, OSError):
        return False


def test_cut_files_are_refused_at_every_length(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    save_file(_tensors(), whole)
    data = whole.read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert not _accepts(path), length
    path.write_bytes(data + b"x")
    assert not _accepts(path)


def test_flipped_bits_never_pass_where_the_safetensors_package_refuses(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    save_file(_tensors(), whole)
    data = whole.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    path = tmp_path / "flipped.safetensors"
    rng = random.Random(0)
    for position in range(header):
        flipped = bytearray(data)
        flipped[position] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        assert not _accepts(path) or _oracle_accepts(path), position


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "needs 8 bytes, found 4"),
        ({"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 8]}, "needs"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}, "list of sizes"),
        ({"dtype": "F32", "shape": [True], "data_offsets": [0, 8]}, "list of sizes"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, "needs 8 bytes, found -8"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}, "expected to start at byte"),
        ({"dtype": "X", "shape": [2], "data_offsets": [0, 8]}, "unknown dtype 'X'"),
        ({"dtype": [], "shape": [2], "data_offsets": [0, 8]}, "unknown dtype"),
        ({"dtype": "F32", "shape": [2]}, "expected an object"),
        ([], "expected an object"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, entry: object, message: str) -> None:
    header = json.dumps({"t": entry}).encode()
    path = tmp_path / "lie.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError, match=message):
        SafetensorsFile(path)

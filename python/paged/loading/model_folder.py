# SPDX-License-Identifier: Apache-2.0
"""Files of a Hugging Face model folder, treated as data from a stranger.

Invariants: only plain file names are opened, none leads out of the folder but through the Hub cache's own links, JSON
is bounded in size, and nothing is ever imported, unpickled or executed.
"""

import json
from pathlib import Path
from typing import Any

from paged.loading.errors import CheckpointError

_MAX_JSON_BYTES = 64 << 20


def file_in(folder: Path, name: object) -> Path:
    """The path of `name` inside `folder`, which need not exist. Raises CheckpointError if it lies elsewhere."""
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise CheckpointError(f"{folder}: expected the plain name of a file in this folder, found {name!r}")
    path = folder / name
    target = path.resolve()
    if not any(target.is_relative_to(root) for root in _roots(folder.resolve())):
        raise CheckpointError(f"{path}: is a link to {target}, outside the model folder; copy the file into the folder")
    return path


def _roots(folder: Path) -> list[Path]:
    """Where files of a folder may lie. The Hub cache keeps them in CACHE[/models--X]/blobs and links to them."""
    roots = [folder]
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        roots += [folder.parents[1] / "blobs", folder.parents[2] / "blobs"]
    return roots


def read_json(folder: Path, name: str) -> dict[str, Any] | None:
    """The JSON object in file `name`, None if there is no such file. Raises CheckpointError if it is anything else."""
    path = file_in(folder, name)
    if not path.exists():
        return None
    if not path.is_file() or path.stat().st_size > _MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: expected a JSON file of at most {_MAX_JSON_BYTES} bytes")
    try:
        return parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object out of untrusted UTF-8. Raises CheckpointError, also on a repeated key: readers disagree on it."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, a repeated key, a huge number
        raise CheckpointError(f"{where}: not a valid JSON object: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError(f"one of the {len(pairs)} keys of an object appears twice")
    return result

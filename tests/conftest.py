# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import paged
from backends import DEVICES, open_llm

# A script's background jobs ignore Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


class _RealModels(dict[str, Path]):
    """Asking for a model that is not at hand skips the test and says how to get it."""

    def __missing__(self, name: str) -> Path:
        pytest.skip(f"no model '{name}': put it into a folder and name the folder in PAGED_TEST_MODELS")


@pytest.fixture(scope="session")
def real_models() -> Mapping[str, Path]:
    """Small real models: "smollm2-135m-instruct.gguf" (pulled if it is missing) and, where the folder named by
    PAGED_TEST_MODELS has them, "gemma-3-270m.gguf", "smollm2-135m-instruct" and "gemma-3-270m" (Hugging Face folders).
    """
    found = _RealModels()
    folder = os.environ.get("PAGED_TEST_MODELS")
    if folder:
        for path in Path(folder).iterdir():
            if path.suffix == ".gguf" or (path / "config.json").is_file():
                found[path.name] = path
    if "smollm2-135m-instruct.gguf" not in found:
        from paged.loading.pull import pull

        found["smollm2-135m-instruct.gguf"] = pull("smollm2-135m")
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with random weights; a module that needs another model has a fixture of this name."""
    from tiny_models import tiny_model

    return tiny_model("llama").save(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module", params=DEVICES)
def llm(request: pytest.FixtureRequest, folder: Path) -> Iterator[paged.LLM]:
    """The module's `folder` on every device of this build."""
    with open_llm(folder, request.param) as llm:
        yield llm


@pytest.fixture(scope="module", params=[device for device in DEVICES if device != "torch"])
def device(request: pytest.FixtureRequest) -> str:
    """Each device of this build whose blocks the core moves."""
    return str(request.param)


@pytest.fixture(scope="module")
def oracle(folder: Path, device: str) -> Iterator[paged.LLM]:
    """The module's `folder` on `device`, where nothing is kept."""
    with open_llm(folder, device, block_size=16, enable_prefix_caching=False) as llm:
        yield llm

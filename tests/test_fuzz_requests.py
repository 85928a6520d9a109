# SPDX-License-Identifier: Apache-2.0
"""Whatever an application passes ends in an answer or a named exception, and the engine answers as before."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

import paged
from fuzz_requests import TARGETS, attempt_of, open_llm

EXAMPLES = int(os.environ.get("PAGED_FUZZ_EXAMPLES", "150"))


@pytest.fixture(scope="module")
def llm() -> Iterator[paged.LLM]:
    with open_llm() as llm:
        yield llm


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_arguments(llm: paged.LLM, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # callbacks that raise are told of there
    attempt_of(target, llm, EXAMPLES if target != "options" else EXAMPLES // 3)()

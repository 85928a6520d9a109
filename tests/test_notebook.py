# SPDX-License-Identifier: Apache-2.0
"""The engine in a Jupyter kernel: cells that generate, await and stream, and one that is interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tiny_models import tiny_model

pytest.importorskip("ipykernel", reason="Jupyter's kernel is not installed: pip install 'paged[test]'")
manager = pytest.importorskip("jupyter_client.manager", reason="jupyter_client is missing: pip install 'paged[test]'")


class Notebook:
    def __init__(self, kernels: Any, client: Any) -> None:
        self.kernels = kernels
        self._client = client

    def run(self, code: str, on_text: Callable[[str], object] = lambda text: None) -> tuple[str, str]:
        """What the cell printed, and the name of the exception that ended it or ""."""
        printed: list[str] = []

        def on_message(message: Any) -> None:
            if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
                printed.append(message["content"]["text"])
                on_text(message["content"]["text"])

        reply = self._client.execute_interactive(code, timeout=120, output_hook=on_message)
        return "".join(printed), reply["content"].get("ename", "")


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    folder = tiny_model("llama").save(tmp_path_factory.mktemp("llama"))
    kernels, client = manager.start_new_kernel(kernel_name="python3")
    notebook = Notebook(kernels, client)
    opened = f"import paged\nllm = paged.LLM({str(folder)!r}, dtype='float32', num_threads=1, kv_cache_bytes=1 << 24)"
    assert notebook.run(opened) == ("", "")
    short = "short = paged.SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)"
    assert notebook.run(short) == ("", "")
    yield notebook
    client.stop_channels()
    kernels.shutdown_kernel()


def test_every_style_gives_the_same_tokens(notebook: Notebook) -> None:
    blocking, error = notebook.run("print(llm.generate([5, 6], short).token_ids)")
    assert error == "" and blocking.count(",") == 19
    assert notebook.run("print((await llm.submit([5, 6], short)).token_ids)") == (blocking, "")
    streamed = "print([token for chunk in llm.stream([5, 6], short) for token in chunk.token_ids])"
    assert notebook.run(streamed) == (blocking, "")
    asynchronous = "print([token async for chunk in llm.stream([5, 6], short) for token in chunk.token_ids])"
    assert notebook.run(asynchronous) == (blocking, "")


LONG = """
import time

def slowly(token_ids, logits):
    if len(token_ids) == 3:
        print("running", flush=True)
    time.sleep(0.05)
    return logits

long = paged.SamplingParams(max_tokens=200, ignore_eos=True, logits_processors=[slowly])
before = llm.stats()
"""


@pytest.mark.parametrize(
    "cell",
    [
        "llm.generate([[5, 6]], long)",
        "llm.submit([5, 6], long).result()",
        "for chunk in llm.stream([5, 6], long): pass",
        "async for chunk in llm.stream([5, 6], long): pass",
    ],
)
def test_interrupting_a_cell_cancels_what_it_waited_for(notebook: Notebook, cell: str) -> None:
    """Not tried: `await`. The kernel itself sees an interrupt only when something else wakes its event loop."""
    assert notebook.run(LONG) == ("", "")
    interrupted = False

    def interrupt(text: str) -> None:
        nonlocal interrupted
        if not interrupted and "running" in text:
            interrupted = True
            notebook.kernels.interrupt_kernel()

    printed, error = notebook.run(cell, on_text=interrupt)
    assert "running" in printed and error in ("KeyboardInterrupt", "CancelledError")
    assert notebook.run("while llm.stats().num_finished == before.num_finished: time.sleep(0.01)") == ("", "")
    assert notebook.run("print(llm.stats().num_cancelled - before.num_cancelled)") == ("1\n", "")
    assert notebook.run("print(len(llm.generate([5, 6], short).token_ids))") == ("20\n", "")

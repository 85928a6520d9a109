# SPDX-License-Identifier: Apache-2.0
"""An engine in a daemonic worker process, which may not have children of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tiny_models import tiny_model

# A program of its own: "spawn" and "forkserver" import the main module anew, and pytest's is not made for that.
PROGRAM = """
import multiprocessing, sys
import paged

PARAMS = paged.SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)


def answer(folder, pipe):
    with paged.LLM(folder, dtype="float32", num_threads=2) as llm:
        pipe.send((multiprocessing.current_process().daemon, llm.generate([5, 6], PARAMS).token_ids))


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    receiver, sender = context.Pipe(duplex=False)
    with paged.LLM(sys.argv[2], dtype="float32", num_threads=2) as llm:
        expected = llm.generate([5, 6], PARAMS).token_ids
        worker = context.Process(target=answer, args=(sys.argv[2], sender), daemon=True)
        worker.start()
        assert receiver.poll(120)
        assert receiver.recv() == (True, expected)
        worker.join(60)
        assert worker.exitcode == 0
        assert llm.generate([5, 6], PARAMS).token_ids == expected
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_daemonic_worker_has_an_engine_of_its_own(method: str, tmp_path: Path) -> None:
    """Also one that is forked while an engine runs."""
    folder = tiny_model("llama").save(tmp_path / "llama")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), method, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr

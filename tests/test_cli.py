# SPDX-License-Identifier: Apache-2.0
"""The `paged` command as a user runs it."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from paged.inspection import decode_op_times


@pytest.fixture
def gguf(real_models: Mapping[str, Path]) -> str:
    return str(real_models["smollm2-135m-instruct.gguf"])


def paged(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "paged", *arguments], capture_output=True, text=True, timeout=120)


def test_generate_answers(gguf: str) -> None:
    done = paged("generate", "What is the capital of Japan?", "--model", gguf, "--max-tokens", "60")
    assert done.returncode == 0, done.stderr
    assert "Tokyo" in done.stdout


def test_raw_continues_the_prompt(gguf: str) -> None:
    done = paged("generate", "The capital of France is", "--model", gguf, "--raw", "--max-tokens", "4", "--verbose")
    assert "Paris" in done.stdout
    assert "LlamaForCausalLM" in done.stderr


def test_inspect_lists_the_program_with_times(gguf: str) -> None:
    done = paged("inspect", "--program", gguf)
    assert done.returncode == 0, done.stderr
    for part in ("rope_store_kv", "attention", "µs", "49,152", "[T, 576]"):
        assert part.replace(",", "") in done.stdout.replace(",", "")


def test_op_times_name_what_each_op_reads(gguf: str) -> None:
    times = decode_op_times(gguf, num_threads=1)
    assert sum(op.kind == "attention" for op in times) == 30
    assert all(op.seconds > 0 for op in times if op.matrix_bytes)
    assert {op.kind for op in times if op.matrix_bytes} == {"linear", "gated_linear"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "x", "--model", "no-such-model"), "no model 'no-such-model'"),
        (("generate", "x", "--model", "{gguf}", "--temperature", "-1"), "temperature"),
        (("generate", "x", "--model", "{gguf}", "--dtype", "int3"), "dtype"),
        (("pull", "nothing"), "nothing"),
    ],
)
def test_mistakes_are_one_line_on_stderr(gguf: str, arguments: tuple[str, ...], message: str) -> None:
    done = paged(*(argument.replace("{gguf}", gguf) for argument in arguments))
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


class Terminal:
    """A `paged chat` on a terminal of its own."""

    def __init__(self, gguf: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(sys.executable, [sys.executable, "-m", "paged", "chat", "--model", gguf, "--max-tokens", "2000"])
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait_for(self, text: str, *, after: int = 0) -> None:
        deadline = time.monotonic() + 60
        while text not in self.seen[after:]:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {text!r} in {self.seen[after:]!r}"
            try:
                self.seen += os.read(self.fd, 4096).decode(errors="replace")
            except OSError:
                raise AssertionError(f"the chat ended early: {self.seen!r}") from None

    def exit_status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_chat_remembers_and_control_c_stops_the_answer_only(gguf: str) -> None:
    terminal = Terminal(gguf)
    terminal.wait_for("> ")
    terminal.type("My name is Ada. Say hello to me.\n")
    terminal.wait_for("Ada", after=len(terminal.seen))
    terminal.wait_for("\n> ", after=len(terminal.seen))
    mark = len(terminal.seen)
    terminal.type("Write a very long story about the sea, at least two thousand words.\n")
    terminal.wait_for("words.", after=mark)
    terminal.wait_for("sea", after=terminal.seen.index("words.", mark))
    os.kill(terminal.pid, signal.SIGINT)
    terminal.wait_for("[stopped]", after=mark)
    terminal.wait_for("> ", after=terminal.seen.index("[stopped]", mark))
    terminal.type("\x04")
    assert terminal.exit_status() == 0


@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.02, 0.05])
def test_control_c_before_the_first_word_does_not_end_the_chat(gguf: str, seconds: float) -> None:
    terminal = Terminal(gguf)
    terminal.wait_for("> ")
    terminal.type("Write a very long story.\n")
    terminal.wait_for("story.\r\n")
    time.sleep(seconds)
    os.kill(terminal.pid, signal.SIGINT)
    terminal.wait_for("\n> ", after=terminal.seen.index("story."))
    terminal.type("\x04")
    assert terminal.exit_status() == 0


INTERRUPTED_IN_EXEC = """
import contextlib, sys
from paged import cli

class Interrupted:
    def chat(self, *_: object, **__: object) -> None:
        exec("raise KeyboardInterrupt")  # as in the namedtuple() of a module that a first chat imports

cli._open = lambda options: contextlib.nullcontext(Interrupted())
cli._lines = lambda: ["hello"]
sys.exit(cli.main(["chat"]))
"""


def test_an_interrupt_inside_exec_does_not_end_the_chat_by_sigint(tmp_path: Path) -> None:
    (tmp_path / "chat_interrupted_in_exec.py").write_text(INTERRUPTED_IN_EXEC)
    done = subprocess.run([sys.executable, "-m", "chat_interrupted_in_exec"], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b" [stopped]\n")

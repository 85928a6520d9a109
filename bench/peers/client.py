# SPDX-License-Identifier: Apache-2.0
"""The driver's side of a worker: a process that is stopped whenever it is not being measured.

Owns the process from `Worker(...)` to `close()`. Between calls the process is held by SIGSTOP, so that no engine's idle
threads take time or cache from the one being measured.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_LOG_TAIL = 2000


class WorkerError(RuntimeError):
    """The worker ended without an answer; the message carries the last of what it printed."""


class Worker:
    """A running engine. `started` holds what it reported when loaded: version, import_seconds, load_seconds."""

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed in close())
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
            env=os.environ | (environment or {}),
        )
        try:
            self.started = self._answer()
        except BaseException:
            self.close()
            raise

    def run(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Lets the process go on, has it run `command`, and stops it again."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            print(json.dumps({"run": command, **arguments}), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise WorkerError(self._last_words()) from None
        return self._answer()

    def close(self) -> None:
        """Ends the process, by force if it does not end by itself. Idempotent."""
        self._signal(signal.SIGCONT)
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(BrokenPipeError):  # it has died
                self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._last_words())
        self._signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        return f"worker ended with exit status {code}; its last output:\n{self._log.read()[-_LOG_TAIL:]}"

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)


def worker_command(python: Path, script: Path, options: dict[str, object]) -> list[str]:
    """The command line of a worker: `options` become --name value."""
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [str(python), str(script), *arguments]

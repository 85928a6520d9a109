# SPDX-License-Identifier: Apache-2.0
"""The loop that every engine's worker runs in its own process: commands in, results out, one JSON object a line.

A worker script defines `load(options)` and calls `serve(load)`. The clock is here, around the engine's calls, so that
every engine is timed by the same lines. Only the standard library, for any environment.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

Result = dict[str, Any]


class Engine(Protocol):
    """What a peer must do. Greedy, end of text ignored: exactly the tokens asked for."""

    version: str

    def single(self, prompt: list[int], max_tokens: int, on_tokens: Callable[[int], None]) -> None:
        """One request; calls `on_tokens(count)` as tokens arrive in Python."""

    def batch(self, prompts: list[list[int]], max_tokens: list[int], prefix_len: int) -> list[list[int]]:
        """All requests at once; returns the new ids of each. The first `prefix_len` ids are common and were warmed."""

    def warm_prefix(self, prefix: list[int]) -> None:
        """Computes `prefix` into the engine's cache; does nothing where the engine keeps none."""


@dataclass(frozen=True)
class Options:
    """What the driver asks of a worker. The sizes are for engines that want them beforehand, the same for all."""

    model: str
    dtype: str
    threads: int
    max_model_len: int
    max_sequences: int
    max_tokens_in_flight: int


class Spinner:
    """A thread that counts in pure Python until stopped: the busy thread of an application."""

    def __init__(self) -> None:
        self.count = 0
        self._stop = False
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._stop:
            for _ in range(1000):
                pass
            self.count += 1

    def stop(self) -> None:
        self._stop = True
        self._thread.join()


def run_single(engine: Engine, prompt: list[int], max_tokens: int) -> Result:
    """One request: seconds to the first token and to the last."""
    arrivals: list[tuple[float, int]] = []
    start = time.perf_counter()
    engine.single(prompt, max_tokens, lambda count: arrivals.append((time.perf_counter(), count)))
    seconds = time.perf_counter() - start
    _expect_tokens(sum(count for _, count in arrivals), max_tokens)
    return {"seconds": seconds, "first_token_seconds": arrivals[0][0] - start}


def run_batch(engine: Engine, prompts: list[list[int]], max_tokens: list[int], prefix_len: int) -> Result:
    """All requests at once: seconds to the last token of the last."""
    if prefix_len:
        engine.warm_prefix(prompts[0][:prefix_len])
    start = time.perf_counter()
    outputs = engine.batch(prompts, max_tokens, prefix_len)
    seconds = time.perf_counter() - start
    for output, wanted in zip(outputs, max_tokens, strict=True):
        _expect_tokens(len(output), wanted)
    return {"seconds": seconds, "token_ids": outputs}


def run_beside_spinner(engine: Engine, prompt: list[int], max_tokens: int, stream: bool, seconds: float) -> Result:
    """Decodes alone, then beside a spinning thread; and the thread alone. Rates in tokens and counts a second.

    With `stream` tokens are taken as they come, for `seconds` at most; else by one blocking call for all of them.
    """

    def decode() -> float:
        if not stream:
            return max_tokens / float(run_batch(engine, [prompt], [max_tokens], 0)["seconds"])
        return _stream_for(engine, prompt, max_tokens, seconds)

    tokens_alone = decode()
    spinner = Spinner()
    time.sleep(0.1)
    before, start = spinner.count, time.perf_counter()
    time.sleep(max_tokens / tokens_alone)
    spins_alone = (spinner.count - before) / (time.perf_counter() - start)
    before, start = spinner.count, time.perf_counter()
    tokens_beside = decode()
    spins_beside = (spinner.count - before) / (time.perf_counter() - start)
    spinner.stop()
    return {
        "tokens_alone": tokens_alone,
        "tokens_beside": tokens_beside,
        "spins_alone": spins_alone,
        "spins_beside": spins_beside,
    }


class _EnoughError(Exception):
    """Raised in `on_tokens` to leave an engine's call early."""


def _stream_for(engine: Engine, prompt: list[int], max_tokens: int, seconds: float) -> float:
    """Tokens a second of one request that is left, unfinished or not, once `seconds` have passed."""
    made = 0
    start = time.perf_counter()

    def on_tokens(count: int) -> None:
        nonlocal made
        made += count
        if time.perf_counter() - start > seconds:
            raise _EnoughError

    with contextlib.suppress(_EnoughError):
        engine.single(prompt, max_tokens, on_tokens)
    return made / (time.perf_counter() - start)


def peak_rss_mb() -> float:
    """Largest resident set of this process so far, and of its largest child if it has any, in MB."""
    usage = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage) * 1024 / 1e6


def serve(load: Callable[[Options], tuple[Engine, float]]) -> None:
    """Loads the engine (`load` returns it with the seconds its import took), then answers until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not reach the driver's pipe
    start = time.perf_counter()
    engine, import_seconds = load(_parse_options())
    load_seconds = time.perf_counter() - start - import_seconds
    reply: Result = {"version": engine.version, "import_seconds": import_seconds, "load_seconds": load_seconds}
    print(json.dumps(reply), file=replies)
    commands: dict[str, Callable[..., Result]] = {
        "single": run_single,
        "batch": run_batch,
        "beside_spinner": run_beside_spinner,
    }
    for line in sys.stdin:
        command = json.loads(line)
        reply = commands[command.pop("run")](engine, **command)
        reply["peak_rss_mb"] = peak_rss_mb()
        print(json.dumps(reply), file=replies)


def _parse_options() -> Options:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    parser.add_argument("--max-sequences", type=int, required=True)
    parser.add_argument("--max-tokens-in-flight", type=int, required=True)
    return Options(**vars(parser.parse_args()))


def _expect_tokens(made: int, wanted: int) -> None:
    if made != wanted:
        raise RuntimeError(f"the engine made {made} tokens where {wanted} were asked for: the workload is not the same")

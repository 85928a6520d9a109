# SPDX-License-Identifier: Apache-2.0
"""An engine leaves nothing behind: no memory, no thread, no process, no signal handler, no environment variable."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import paged
from paged import _C

PARAMS = paged.SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def num_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def open_and_close(folder: Path) -> None:
    with paged.LLM(folder, dtype="float32", num_threads=2, kv_cache_bytes=4 << 20) as llm:
        llm.generate([[1, 2, 3], [4] * 100], PARAMS, use_tqdm=False)


def test_a_hundred_open_close_cycles_are_flat(folder: Path) -> None:
    for _ in range(10):
        open_and_close(folder)
    gc.collect()
    memory, threads = resident_bytes(), num_threads()
    for _ in range(100):
        open_and_close(folder)
    gc.collect()
    assert num_threads() == threads
    assert resident_bytes() - memory < 4 << 20  # one engine of this test takes more


def test_no_process_handler_variable_or_logger_is_touched(folder: Path) -> None:
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    environment, level, log_handlers = dict(os.environ), logging.root.level, list(logging.root.handlers)
    with paged.LLM(folder, dtype="float32") as llm:
        llm.generate([1, 2, 3], PARAMS)
        asyncio.run(paged.AsyncLLM(llm).generate([1, 2, 3], PARAMS))
        done = threading.Event()
        llm.submit([4], PARAMS, on_chunk=lambda _: None).add_done_callback(lambda _: done.set())
        assert done.wait(60)
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    assert children.strip() == ""
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers
    assert dict(os.environ) == environment
    assert (logging.root.level, logging.root.handlers) == (level, log_handlers)


def test_close_is_idempotent_and_use_after_close_raises(folder: Path) -> None:
    llm = paged.LLM(folder, dtype="float32")
    stream = llm.stream([1], paged.SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True))
    next(stream)
    llm.close()
    llm.close()
    assert stream.result().finish_reason in ("cancelled", "length")
    assert "closed" in repr(llm)
    with pytest.raises(paged.EngineClosedError, match="closed"):
        llm.generate([1], PARAMS)


def test_garbage_collection_closes(folder: Path) -> None:
    threads = num_threads()
    llm = paged.LLM(folder, dtype="float32", num_threads=2)
    llm.generate([1], PARAMS)
    assert num_threads() > threads
    del llm
    gc.collect()
    assert num_threads() == threads


def test_two_engines_side_by_side(folder: Path) -> None:
    with paged.LLM(folder, dtype="float32") as one, paged.LLM(folder, dtype="float32", block_size=4) as two:
        assert one.generate([5, 6], PARAMS).token_ids == two.generate([5, 6], PARAMS).token_ids
        one.close()
        assert two.generate([7], PARAMS).finish_reason == "length"


def test_use_after_fork_raises_in_the_child_and_the_parent_goes_on(folder: Path) -> None:
    code = f"""
        import os, sys, paged
        llm = paged.LLM({str(folder)!r}, dtype="float32")
        params = paged.SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
        child = os.fork()
        if child == 0:
            try:
                llm.generate([1], params)
            except paged.EngineClosedError as error:
                ok = "fork" in str(error)
                llm.close()
                del llm
                os._exit(0 if ok else 1)
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert len(llm.generate([1], params).token_ids) == 8
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], check=True, timeout=60)


@pytest.mark.parametrize("leave", ["llm.close()", "", "session.__exit__()"])
@pytest.mark.parametrize("tiers", ["", "host_cache=1 << 20, disk_cache=1 << 20"])
def test_a_forked_child_may_close_or_drop_an_engine(folder: Path, leave: str, tiers: str) -> None:
    """Idle or at work, with threads of every kind asleep in it; the parent goes on."""
    code = f"""
        import asyncio, gc, os, signal, threading, paged
        llm = paged.LLM({str(folder)!r}, dtype="float32", num_threads=2, {tiers})
        params = paged.SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
        long = paged.SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)
        asyncio.run(paged.AsyncLLM(llm).generate([1], params))
        session = llm.session()
        session.generate([5, 6], params)
        session.prefetch()
        for is_busy in (False, True, True):
            handle = llm.submit([1], long if is_busy else params)
            waiter = threading.Thread(target=handle.result)
            waiter.start()
            if not is_busy:
                waiter.join()
            child = os.fork()
            if child == 0:
                signal.alarm(30)
                {leave or "pass"}
                del handle, waiter, session, llm
                gc.collect()
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            assert status == 0, status
            waiter.join()
            assert len(session.generate([7], params).token_ids) == 8
        session.close()
        llm.close()
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], check=True, timeout=120)


def test_interpreter_exit_with_a_running_request_is_clean(folder: Path) -> None:
    code = f"""
        import paged
        llm = paged.LLM({str(folder)!r}, dtype="float32")
        stream = llm.stream([1], paged.SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True))
        next(stream)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_import_is_light() -> None:
    """No torch, no tokenizer library: what `import paged` needs is numpy and the extension."""
    code = (
        "import sys, paged; print([m for m in ('torch', 'transformers', 'tokenizers', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class BrokenExecutor:
    """Works until it meets token 13."""

    vocab_size = 32

    def run(self, token_ids: npt.NDArray[np.int32], *arrays: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        if 13 in token_ids:
            raise RuntimeError("thirteen")
        return np.zeros((len(arrays[-1]), self.vocab_size), np.float32)

    def copy_blocks(self, source: npt.NDArray[np.int32], destination: npt.NDArray[np.int32]) -> None:
        raise AssertionError


def make_engine() -> _C.Engine:
    config = _C.SchedulerConfig()
    config.num_blocks, config.max_model_len = 16, 64
    return _C.Engine(config=config, executor=BrokenExecutor(), threads=_C.ThreadPool(1), token_table=None)


def test_a_poisoned_engine_reports_the_first_cause_and_can_be_rebuilt() -> None:
    engine = make_engine()
    request = engine.submit([1], _C.SamplingParams())
    request.wait_finished(60)
    assert request.take()[2] == "length"
    failed = engine.submit([13], _C.SamplingParams())
    failed.wait_finished(60)
    assert failed.take()[2] == "error" and "thirteen" in failed.error
    with pytest.raises(paged.InternalError, match="thirteen"):
        engine.submit([1], _C.SamplingParams())
    engine.close()
    rebuilt = make_engine()
    assert rebuilt.submit([1], _C.SamplingParams()).wait_finished(60)
    rebuilt.close()

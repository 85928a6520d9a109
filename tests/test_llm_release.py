# SPDX-License-Identifier: Apache-2.0
"""Whatever ends an engine, requests in flight and handles that wait included, gives everything back: Ctrl-C, an
exception, fork(), the end of the interpreter, a failed device."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import paged
from paged.torch_backend.engine_model import TorchEngineModel
from step_gate import gated_llm
from test_llm_handle import eventually, idle
from test_llm_lifetime import num_threads, resident_bytes
from tiny_models import tiny_model

PARAMS = paged.SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
LONG = paged.SamplingParams(temperature=0.0, max_tokens=240, ignore_eos=True)
PRELUDE = """
    import asyncio, gc, os, signal, sys, threading, time
    import paged
    from step_gate import gated_llm
    folder = {folder!r}
    params = paged.SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    long = paged.SamplingParams(temperature=0.0, max_tokens=240, ignore_eos=True)
"""


def run(folder: Path, code: str) -> None:
    """In an interpreter of its own, which ends by itself, without a word."""
    source = textwrap.dedent(PRELUDE.format(folder=str(folder))) + textwrap.dedent(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_ends_the_wait_and_its_request_and_the_engine_goes_on(folder: Path) -> None:
    """A signal from the operating system, while a step stands at the gate: the request cannot end by itself."""
    run(folder, """
        def interrupt():
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)
        for wait in (
            lambda llm: llm.generate([[1], [2]], long, use_tqdm=False),
            lambda llm: llm.submit([1], long).result(),
            lambda llm: llm.submit([1], long).result(timeout=1e9),
            lambda llm: list(llm.stream([1], long)),
            lambda llm: asyncio.run(paged.AsyncLLM(llm).generate([1], long)),
        ):
            with gated_llm(folder) as (llm, gate):
                thread = threading.Thread(target=interrupt)
                thread.start()
                try:
                    wait(llm)
                except KeyboardInterrupt:
                    pass
                else:
                    raise AssertionError("not interrupted")
                thread.join()
                gc.collect()
                gate.open()
                assert len(llm.generate([1], params).token_ids) == 8
                deadline = time.monotonic() + 60
                while llm.stats().num_running and time.monotonic() < deadline:
                    time.sleep(0.01)
                stats = llm.stats()
                assert stats.num_running == 0 and stats.num_used_blocks == 0
                assert stats.num_cancelled == stats.num_finished - 1 > 0
    """)  # fmt: skip


@pytest.mark.parametrize(
    "pending",
    [
        "handles = [llm.submit([i + 1], long) for i in range(100)]",
        "threading.Thread(target=llm.submit([1], long).result, daemon=True).start()",
        "llm.submit([1], long, on_chunk=lambda chunk: time.sleep(100))",
        "handle = llm.submit([1], long); handle.add_done_callback(print)",
        "llm.start_trace(); handle = llm.submit([1], long); next(handle); sys.exit(0)",
        "loop = asyncio.new_event_loop(); h = llm.submit([1], long); loop.create_task(h._result_async()); "
        "loop.run_until_complete(asyncio.sleep(0)); loop.close()",
    ],
)
def test_the_interpreter_ends_with_requests_in_flight(folder: Path, pending: str) -> None:
    run(folder, f"""
        sys.stdout = open(os.devnull, "w")
        import atexit, logging
        logging.getLogger("asyncio").disabled = True
        llm = paged.LLM(folder, dtype="float32", num_threads=2)
        {pending}
    """)  # fmt: skip


def test_a_child_of_fork_is_told_and_can_leave_with_handles_that_wait(folder: Path) -> None:
    """In the parent, threads stand in result(), in an iteration and in the callbacks when it forks."""
    run(folder, """
        with gated_llm(folder) as (llm, gate):
            handles = [llm.submit([i + 1], long) for i in range(4)]
            threads = [threading.Thread(target=handles[0].result), threading.Thread(target=list, args=(handles[1],))]
            for thread in threads:
                thread.start()
            called = threading.Event()
            handles[2].add_done_callback(lambda handle: called.set())
            time.sleep(0.3)
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                def refused(use):
                    try:
                        use()
                    except paged.EngineClosedError as error:
                        return "fork" in str(error)
                    return False
                handle = handles[3]
                uses = [handle.result, lambda: next(handle), lambda: handle.add_done_callback(print),
                        lambda: asyncio.run(handle._result_async()), lambda: llm.submit([1]), llm.generate.__get__(llm)]
                told = [refused(use) for use in uses[:-1]] + [refused(lambda: llm.generate([1], params))]
                handle.cancel(), handle.stop(), handle.close()
                llm.close()
                assert llm.closed
                del handle, handles, uses, llm
                gc.collect()
                os._exit(0 if all(told) else 10 + told.index(False))
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0, os.waitstatus_to_exitcode(status)
            gate.open()
            for thread in threads:
                thread.join()
            assert [len(handle.result(60).token_ids) for handle in handles] == [240] * 4
            assert called.wait(60)
    """)  # fmt: skip


def test_an_exception_releases_what_was_made_until_then(folder: Path, tmp_path: Path) -> None:
    """In the block of an engine, in the making of one, and with a reference from the traceback."""
    broken = tiny_model("llama").save(tmp_path)
    (broken / "tokenizer.json").write_text("{}")

    def fail() -> None:
        with pytest.raises(LookupError), paged.LLM(folder, dtype="float32", num_threads=2) as llm:
            handles = [llm.submit([i + 1], LONG) for i in range(20)]
            raise LookupError(len(handles))
        with pytest.raises(ValueError, match=r"tokenizer\.json"):
            paged.LLM(broken, dtype="float32", num_threads=2)

    for _ in range(10):
        fail()
    gc.collect()
    threads, memory = num_threads(), resident_bytes()
    for _ in range(30):
        fail()
    gc.collect()
    assert num_threads() == threads
    assert resident_bytes() - memory < 2 << 20


def test_two_engines_keep_to_their_budgets_and_to_their_sum(folder: Path) -> None:
    """Pools are touched as they fill, so resident memory shows what each really takes."""
    run(
        folder,
        """
        from test_llm_lifetime import resident_bytes
        budgets = (16 << 20, 32 << 20)
        bytes_per_block = 2 * 3 * 2 * 16 * 4 * 16  # keys and values, layers, heads, head_dim, bytes, tokens
        before = resident_bytes()
        one, two = (paged.LLM(folder, dtype="float32", num_threads=1, kv_cache_bytes=size) for size in budgets)
        with one, two:
            empty = resident_bytes()
            for llm, budget in zip((one, two), budgets, strict=True):
                stats = llm.stats()
                assert budget - bytes_per_block < stats.num_blocks * bytes_per_block <= budget
                count = stats.num_blocks * 16 // 240 + 10  # more than it holds
                prompts = [[i % 300 + 1, i // 300 + 1, *[7] * 238] for i in range(count)]
                llm.generate(prompts, paged.SamplingParams(max_tokens=1), use_tqdm=False)
                assert llm.stats().num_cached_blocks > 0.9 * stats.num_blocks
            full = resident_bytes()
            assert 0.8 * sum(budgets) < full - empty < sum(budgets) + (6 << 20), (empty, full)
            one.close()
            assert full - resident_bytes() > 0.8 * budgets[0]  # the one's, at once; the other's stays
            assert two.generate([1], params).finish_reason == "length"
        gc.collect()
        assert resident_bytes() - before < 8 << 20, (before, resident_bytes())
    """,
    )


def test_a_failed_device_tells_everybody_the_first_cause_and_can_be_rebuilt(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who runs, who waits in the queue, who awaits, who is called back, and who comes later."""
    real_run = TorchEngineModel.run
    causes = iter(["out of memory on the device", "a second error, of no interest"])
    broken = threading.Event()

    def run_out(self: TorchEngineModel, *arrays: object) -> object:
        if broken.is_set():
            raise RuntimeError(next(causes))
        return real_run(self, *arrays)  # type: ignore[arg-type]

    monkeypatch.setattr(TorchEngineModel, "run", run_out)
    with gated_llm(folder, max_num_sequences=2) as (llm, gate):
        handles = [llm.submit([i + 1], LONG) for i in range(6)]
        called: list[str] = []
        handles[1].add_done_callback(lambda handle: called.append(handle._request.error))
        chunks: list[paged.Chunk] = []
        watched = llm.submit([9], LONG, on_chunk=chunks.append)
        gate.allow(2)
        assert eventually(lambda: len(handles[0]._request.answer()[1]) == 2)
        broken.set()
        gate.open()
        for handle in (*handles, watched):
            with pytest.raises(paged.RequestError, match="out of memory on the device"):
                handle.result(60)
        with pytest.raises(paged.RequestError, match="out of memory"):
            asyncio.run(handles[2]._result_async())
        with pytest.raises(paged.RequestError, match="out of memory"):
            list(handles[3])
        assert len(handles[0]._request.answer()[1]) >= 2  # what had come is kept
        assert eventually(lambda: len(called) == 1) and "out of memory" in called[0]
        assert eventually(lambda: bool(chunks) and chunks[-1].finish_reason == "error")
        for _ in range(2):
            with pytest.raises(paged.InternalError, match=r"first cause was: .*out of memory on the device"):
                llm.submit([1])
        assert llm.stats().num_failed == 7 and llm.stats().num_running == 0
    broken.clear()
    with paged.LLM(folder, dtype="float32", device="torch") as rebuilt:
        assert len(rebuilt.generate([1], PARAMS).token_ids) == 8


def test_many_threads_of_many_kinds_at_once(folder: Path) -> None:
    with paged.LLM(folder, dtype="float32", num_threads=1) as llm:
        expected = {i: llm.generate([i + 1, 2], PARAMS).token_ids for i in range(8)}
        done: list[bool] = []

        def call_back(i: int) -> list[int]:
            event, tokens = threading.Event(), list[int]()
            llm.submit([i + 1, 2], PARAMS, on_chunk=lambda chunk: tokens.extend(chunk.token_ids)).add_done_callback(
                lambda _: event.set()
            )
            assert event.wait(60)
            return tokens

        ways: list[Callable[[int], list[int]]] = [
            lambda i: llm.generate([i + 1, 2], PARAMS).token_ids,
            lambda i: [token for chunk in llm.stream([i + 1, 2], PARAMS) for token in chunk.token_ids],
            lambda i: asyncio.run(paged.AsyncLLM(llm).generate([i + 1, 2], PARAMS)).token_ids,
            call_back,
        ]

        def use(thread: int) -> None:
            for step in range(8):
                i = (thread + step) % 8
                done.append(ways[(thread + step) % 4](i) == expected[i])

        threads = [threading.Thread(target=use, args=(i,)) for i in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert len(done) == 256 and all(done)
        assert eventually(lambda: idle(llm))

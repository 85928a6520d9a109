# SPDX-License-Identifier: Apache-2.0
"""What an engine must survive: enormous requests, hostile callbacks, slow and absent consumers, use after close."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import paged
from fuzz_requests import open_llm
from test_llm_handle import eventually, idle
from test_llm_lifetime import resident_bytes

GREEDY = paged.SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
LONG = paged.SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def llm() -> Iterator[paged.LLM]:
    with open_llm() as llm:
        yield llm


def reopened(llm: paged.LLM) -> paged.LLM:
    return paged.LLM(llm.folder, dtype="float32", num_threads=1)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def answers_as_before(llm: paged.LLM) -> Iterator[None]:
    """After each test the engine does what it did before."""
    expected = llm.generate(PROMPT, GREEDY).token_ids
    yield
    assert llm.submit(PROMPT, GREEDY).result(60).token_ids == expected
    assert eventually(lambda: idle(llm))


ENORMOUS = {
    "a million tokens": ("llm.generate([1] * 10**6)", ValueError, "1000000 tokens"),
    "megabytes of text": ("llm.generate('hello ' * 10**6)", ValueError, "6000000 characters"),
    "a million stop strings": ("SamplingParams(stop=[f'z{i}' for i in range(10**6)])", ValueError, "1000000"),
    "a stop string of megabytes": ("SamplingParams(stop='z' * 10**7)", ValueError, "10000000"),
    "a million bad words": ("SamplingParams(bad_words=[f'z{i}' for i in range(10**6)])", ValueError, "1000000"),
    "biases of no token": ("llm.generate([1], SamplingParams(logit_bias={10**6: 1}))", ValueError, "320"),
    "a million choices": ("StructuredOutputsParams(choice=[str(i) for i in range(10**6)])", ValueError, "characters"),
    "a deep schema": ("StructuredOutputsParams(json='{\"a\":' * 10**5 + '{}' + '}' * 10**5)", ValueError, "recursion"),
    "a number of 5000 digits": ("SamplingParams(temperature=10**5000)", ValueError, "temperature"),
    "an empty prompt": ("llm.submit([])", ValueError, "empty"),
    "several prompts, the last one empty": ("llm.generate([[1]] * 3 + [[]])", ValueError, "prompt 3 of 4"),
    "a lone surrogate among others": ("llm.generate(['a', chr(0xD800)])", ValueError, "prompt 1 of 2.*surrogate"),
    "a petabyte of cache": ("LLM(llm.folder, kv_cache_bytes=1 << 50)", ValueError, "kv_cache_bytes"),
    "more cache than memory": ("LLM(llm.folder, kv_cache_bytes=1 << 40)", MemoryError, "kv_cache_bytes"),
}  # fmt: skip


def test_enormous_requests_are_refused_within_a_gigabyte() -> None:
    """A million stop ids and allowed ids are no error, and slow nobody down."""
    code = f"""
        import re, resource
        from paged import *
        from fuzz_requests import open_llm
        cases = {[(code, error.__name__, match) for code, error, match in ENORMOUS.values()]!r}
        with open_llm() as llm:
            size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + 2**30, size + 2**30))
            for code, error, match in cases:
                try:
                    eval(code)
                except Exception as raised:
                    assert type(raised).__name__ == error and re.search(match, str(raised)), (code, raised)
                    assert len(str(raised)) < 1000, code
                else:
                    raise AssertionError(code)
            ids = [i % 320 for i in range(10**6)]
            params = SamplingParams(max_tokens=8, stop_token_ids=range(320, 10**6), allowed_token_ids=ids)
            assert llm.generate([1], params).finish_reason in ("stop", "length")
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("error", [LookupError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
@pytest.mark.parametrize("hook_raises", [False, True])
def test_whatever_a_callback_raises_the_next_ones_are_called(
    llm: paged.LLM, error: type[BaseException], hook_raises: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported = []

    def hook(arguments: threading.ExceptHookArgs) -> None:
        reported.append(arguments.exc_type)
        if hook_raises:
            raise error("in the hook")

    def broken(_: object) -> None:
        raise error("mine")

    monkeypatch.setattr(threading, "excepthook", hook)
    called = threading.Event()
    first = llm.submit([1], LONG, on_chunk=broken)
    first.add_done_callback(broken)
    first.add_done_callback(lambda _: called.set())
    assert called.wait(60) and first.result(60).finish_reason in ("cancelled", "length")
    assert reported == [error, error]


def test_a_callback_may_use_the_engine_and_forget_its_handle(llm: paged.LLM) -> None:
    answers: list[list[int]] = []
    done = threading.Event()
    handles: dict[str, paged.Handle] = {}

    def on_chunk(_: paged.Chunk) -> None:
        if not answers:
            answers.append(llm.generate([8], GREEDY).token_ids)  # waits, on this thread, for the same engine
            inner = llm.submit([9], GREEDY, on_chunk=lambda _: None)
            inner.add_done_callback(lambda handle: (answers.append(handle.result(0).token_ids), done.set()))
            handles.clear()
            gc.collect()

    handles["one"] = llm.submit([7], LONG, on_chunk=on_chunk)
    assert done.wait(60)
    assert answers == [llm.generate([8], GREEDY).token_ids, llm.generate([9], GREEDY).token_ids]


def test_a_callback_may_cancel_stop_and_add_callbacks(llm: paged.LLM) -> None:
    calls: list[str] = []
    done = threading.Event()

    def again(handle: paged.Handle) -> None:
        calls.append(handle.result(0).finish_reason)
        handle.cancel(), handle.stop(), handle.close()
        if len(calls) < 100:
            handle.add_done_callback(again)
        else:
            done.set()

    llm.submit([3], GREEDY).add_done_callback(again)
    assert done.wait(60) and calls == ["length"] * 100


def test_a_blocked_callback_keeps_nobody_from_an_answer(llm: paged.LLM) -> None:
    """Nor do the callbacks that wait behind it hold more than themselves."""
    entered, release, late = threading.Event(), threading.Event(), []

    def block(_: paged.Chunk) -> None:
        entered.set()
        assert release.wait(60)

    try:
        stuck = llm.submit([4], GREEDY, on_chunk=block)
        assert entered.wait(60)
        handles = [llm.submit([i], GREEDY, on_chunk=lambda _: None) for i in range(1, 201)]
        for handle in handles:
            handle.add_done_callback(late.append)
        assert all(len(handle.result(60).token_ids) == 6 for handle in [stuck, *handles])
        waiting = llm._notifiers.callbacks._waiting
        assert not late and sum(len(calls) for calls in waiting.values()) <= len(handles)
    finally:
        release.set()
    assert eventually(lambda: len(late) == 200)


def _read_one(llm: paged.LLM) -> None:
    next(llm.stream([3, 4], LONG))


def _read_none(llm: paged.LLM) -> None:
    llm.submit([3, 4], LONG)


def _call_back(llm: paged.LLM) -> None:
    handle = llm.submit([3, 4], LONG, on_chunk=lambda _: None)
    handle.cancel()


def _loop_goes_away(llm: paged.LLM) -> None:
    async def read_one() -> None:
        async for _ in paged.AsyncLLM(llm).stream([3, 4], LONG):
            return

    asyncio.run(read_one())


def _task_is_cancelled(llm: paged.LLM) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(paged.AsyncLLM(llm).generate([3, 4], LONG))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(cancel())


@pytest.mark.parametrize("leave", [_read_one, _read_none, _call_back, _loop_goes_away, _task_is_cancelled])
def test_consumers_that_go_away_leave_nothing(llm: paged.LLM, leave: Callable[[paged.LLM], None]) -> None:
    def round_of(count: int) -> int:
        for _ in range(count):
            leave(llm)
        gc.collect()
        assert eventually(lambda: idle(llm) and llm.stats().num_used_blocks == 0)
        return resident_bytes()

    before = max(round_of(60), round_of(60))
    assert round_of(120) - before < 2 << 20
    for notifier in (llm._notifiers.loops, llm._notifiers.callbacks):
        assert eventually(lambda notifier=notifier: not notifier._waiting)  # type: ignore[misc]


def test_handles_that_nobody_reads_cost_their_answers(llm: paged.LLM) -> None:
    def hold(count: int) -> list[paged.Handle]:
        handles = [llm.submit([i % 300 + 1], LONG) for i in range(count)]
        assert eventually(lambda: all(handle.done() for handle in handles))
        return handles

    hold(100)
    before = resident_bytes()
    handles = hold(300)
    assert resident_bytes() - before < 300 * 16_384  # 200 ids, times and their text
    assert all(len(next(handle).token_ids) == 200 for handle in handles)


def test_use_after_close_raises_or_gives_what_had_come(llm: paged.LLM) -> None:
    with reopened(llm) as llm:
        handles = [llm.submit([i + 1], LONG) for i in range(80)]
        finished = llm.submit(PROMPT, GREEDY)
        finished.result(60)
        llm.close()
    for use in (
        lambda: llm.submit([1]), lambda: llm.generate([[1], [2]]), lambda: llm.stream("a"),
        lambda: llm.chat([{"role": "user", "content": "a"}]), lambda: asyncio.run(paged.AsyncLLM(llm).generate("a")),
        lambda: llm.submit([1], paged.SamplingParams(structured_outputs=paged.StructuredOutputsParams(regex="a"))),
    ):  # fmt: skip
        with pytest.raises(paged.EngineClosedError, match="closed"):
            use()
    assert finished.result().finish_reason == "length" and len(list(finished)) == 1
    for handle in handles:
        assert handle.done() and handle.result().finish_reason in ("cancelled", "length")
        handle.cancel(), handle.stop(), handle.close()
        assert list(handle) == []
    called: list[paged.Handle] = []
    finished.add_done_callback(called.append)
    assert called == [finished]
    assert llm.stats().num_running + llm.stats().num_waiting + llm.stats().num_used_blocks == 0
    assert llm.stats().num_finished == 81 and llm.stats().num_cancelled == sum(
        handle.result().finish_reason == "cancelled" for handle in handles
    )


def test_nobody_waits_for_ever_who_submits_while_it_closes(llm: paged.LLM) -> None:
    for _ in range(10):
        with reopened(llm) as other:
            submitted: list[paged.Handle] = []

            def submit(llm: paged.LLM = other, submitted: list[paged.Handle] = submitted) -> None:
                try:
                    while True:
                        submitted.append(llm.submit([1], GREEDY))
                except paged.EngineClosedError:
                    pass

            with ThreadPoolExecutor(4) as pool:
                threads = [pool.submit(submit) for _ in range(4)]
                assert eventually(lambda submitted=submitted: len(submitted) > 20)  # type: ignore[misc]
                other.close()
                for thread in threads:
                    thread.result(60)
        assert {handle.result(60).finish_reason for handle in submitted} <= {"length", "cancelled"}

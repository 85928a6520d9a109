# SPDX-License-Identifier: Apache-2.0
"""One request object for every style: waiting, iterating, callbacks; cancelled, stopped, dropped."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import paged
from step_gate import gated_llm
from tiny_models import build

GREEDY = paged.SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
LONG = paged.SamplingParams(temperature=0.0, max_tokens=240, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[paged.LLM]:
    with paged.LLM(folder, dtype="float32", num_threads=1) as llm:
        yield llm


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it comes true; a minute is for ever here."""
    for _ in range(6000):
        if condition():
            return True
        time.sleep(0.01)
    return False


def idle(llm: paged.LLM) -> bool:
    return llm.stats().num_running + llm.stats().num_waiting == 0


def test_result_has_all_tokens_whoever_iterated(llm: paged.LLM) -> None:
    expected = llm.generate([5, 6, 7], GREEDY).token_ids
    handle = llm.submit([5, 6, 7], GREEDY)
    assert [t for chunk in handle for t in chunk.token_ids] == expected
    completion = handle.result()
    assert completion.token_ids == expected == handle.result().token_ids
    assert completion.finish_reason == "length" and completion.num_prompt_tokens == 3
    assert handle.done() and list(handle) == []


def test_result_times_out_and_the_request_goes_on(folder: Path) -> None:
    with gated_llm(folder) as (llm, gate):
        handle = llm.submit([5, 6, 7], GREEDY)
        with pytest.raises(TimeoutError, match="still runs"):
            handle.result(timeout=0.01)
        gate.open()
        assert len(handle.result(timeout=60).token_ids) == 20


@pytest.mark.parametrize(("method", "reason"), [("cancel", "cancelled"), ("stop", "stop")])
def test_cancel_and_stop_keep_what_has_come(folder: Path, method: str, reason: str) -> None:
    with gated_llm(folder) as (llm, gate):
        handle = llm.submit([9, 8], GREEDY)
        gate.allow(5)
        before: list[int] = []
        while len(before) < 5:
            before += next(handle).token_ids
        getattr(handle, method)()
        gate.open()
        completion = handle.result(timeout=60)
        assert completion.finish_reason == reason
        assert completion.token_ids[:5] == before and 5 <= len(completion.token_ids) <= 6  # one step may have begun
        assert completion.token_ids == llm.generate([9, 8], GREEDY).token_ids[: len(completion.token_ids)]
        getattr(handle, method)()  # of a finished one: nothing
        assert handle.result().finish_reason == reason


def test_stop_before_the_first_token_gives_an_empty_answer(folder: Path) -> None:
    with gated_llm(folder, max_num_sequences=1) as (llm, gate):
        first, second = llm.submit([1], GREEDY), llm.submit([2], GREEDY)
        second.stop()
        gate.open()
        assert second.result(60).token_ids == [] and second.result().finish_reason == "stop"
        assert first.result(60).finish_reason == "length"


def test_a_dropped_or_left_handle_is_cancelled_and_others_go_on(folder: Path) -> None:
    with gated_llm(folder) as (llm, gate):
        other = llm.submit([11, 12], GREEDY)
        llm.submit([13], GREEDY)  # dropped at once
        with llm.submit([14], GREEDY) as left:
            gate.allow(3)
            next(left)
        gc.collect()
        gate.open()
        assert left.result(60).finish_reason == "cancelled" and list(left) == []
        assert other.result(60).token_ids == llm.generate([11, 12], GREEDY).token_ids
        assert eventually(lambda: idle(llm) and llm.stats().num_finished == 4)


@pytest.mark.parametrize("wait", [paged.Handle.result, list, next])
def test_an_interrupted_wait_cancels_though_its_traceback_is_kept(folder: Path, wait: Callable[..., object]) -> None:
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        """As Ctrl-C does, once the main thread waits."""
        assert eventually(lambda: sys._current_frames()[main].f_code.co_filename == paged.handle.__file__)
        os.kill(os.getpid(), signal.SIGINT)

    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with gated_llm(folder) as (llm, gate), ThreadPoolExecutor(1) as pool:
            with pytest.raises(KeyboardInterrupt) as kept:
                pool.submit(interrupt)
                wait(llm.submit([5], LONG))
            gate.allow(1)
            assert eventually(lambda: llm.stats().num_cancelled == 1)
            assert kept.tb is not None
    finally:
        signal.signal(signal.SIGINT, inherited)


def test_on_chunk_and_done_callback_run_in_order_on_one_other_thread(llm: paged.LLM) -> None:
    expected = llm.generate([5, 6, 7], GREEDY).token_ids
    chunks: list[paged.Chunk] = []
    threads, done = set[int](), threading.Event()

    def on_chunk(chunk: paged.Chunk) -> None:
        threads.add(threading.get_ident())
        assert not done.is_set()
        chunks.append(chunk)

    def on_done(handle: paged.Handle) -> None:
        threads.add(threading.get_ident())
        assert handle.result(0).token_ids == expected
        done.set()

    llm.submit([5, 6, 7], GREEDY, on_chunk=on_chunk).add_done_callback(on_done)  # nobody holds the handle
    assert done.wait(60)
    assert [t for chunk in chunks for t in chunk.token_ids] == expected
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_done_callbacks_are_called_once_each_also_when_added_late(llm: paged.LLM) -> None:
    calls: list[str] = []
    handle = llm.submit([1], GREEDY)
    handle.add_done_callback(lambda _: calls.append("early"))
    handle.add_done_callback(lambda _: calls.append("second"))
    handle.result()
    assert eventually(lambda: len(calls) == 2)
    handle.add_done_callback(lambda _: calls.append("late"))
    assert eventually(lambda: len(calls) == 3)
    assert calls == ["early", "second", "late"]


def test_a_callback_that_raises_is_reported_and_ends_its_own_request(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    chunks: list[paged.Chunk] = []

    def broken(chunk: paged.Chunk) -> None:
        chunks.append(chunk)
        raise LookupError("mine")

    with gated_llm(folder) as (llm, gate):
        other = llm.submit([3], GREEDY)
        handle = llm.submit([4], GREEDY, on_chunk=broken)
        gate.allow(3)
        assert eventually(lambda: len(reported) == 1)
        gate.open()
        assert handle.result(60).finish_reason == "cancelled" and other.result(60).finish_reason == "length"
        assert reported[0].exc_type is LookupError and len(chunks) == 1
        with pytest.raises(RuntimeError, match="on_chunk"):
            next(handle)


def test_a_callback_that_blocks_holds_up_neither_engine_nor_others(llm: paged.LLM) -> None:
    entered, release = threading.Event(), threading.Event()
    chunks: list[paged.Chunk] = []

    def slow(chunk: paged.Chunk) -> None:
        chunks.append(chunk)
        entered.set()
        assert release.wait(60)

    handle = llm.submit([5], LONG, on_chunk=slow)
    assert entered.wait(60)
    assert len(llm.generate([6], LONG).token_ids) == 240
    assert len(handle.result(60).token_ids) == 240
    release.set()
    assert eventually(lambda: chunks[-1].finish_reason == "length")
    assert len(chunks) <= 3  # the first, and all that came meanwhile


def test_a_reader_that_never_reads_costs_no_more_than_its_answer(llm: paged.LLM) -> None:
    """Nothing is queued for it: what it takes at the end is one chunk with everything."""
    expected = llm.generate([7, 7], LONG).token_ids
    handle = llm.submit([7, 7], LONG)
    handle.result(60)
    chunk = next(handle)
    assert chunk.token_ids == expected and chunk.finish_reason == "length"


def test_a_failed_request_raises_with_what_had_come(tmp_path: Path) -> None:
    broken = build("Llama", {})
    with torch.no_grad():
        broken.model.lm_head.weight.fill_(float("nan"))
    with paged.LLM(broken.save(tmp_path), dtype="float32", num_threads=1) as llm:
        handle = llm.submit([1], GREEDY)
        with pytest.raises(paged.RequestError, match="NaN") as raised:
            handle.result()
        assert raised.value.completion.finish_reason == "error" and raised.value.completion.token_ids == []
        with pytest.raises(paged.RequestError, match="NaN"):
            list(llm.stream([1], GREEDY))
        assert llm.generate([1], GREEDY).finish_reason == "error"


def test_threads_share_one_handle(llm: paged.LLM) -> None:
    """Iterating from several threads gives each token to one of them; all see the end."""
    expected = llm.generate([8, 8, 8], LONG).token_ids
    handle = llm.submit([8, 8, 8], LONG)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda _: [chunk.token_ids for chunk in handle], range(4)))
    assert sorted(itertools.chain(*itertools.chain(*parts))) == sorted(expected)
    assert handle.result().token_ids == expected


def test_close_runs_the_callbacks_that_are_due_and_ends_their_threads(folder: Path) -> None:
    before = threading.active_count()
    calls: list[str] = []
    with paged.LLM(folder, dtype="float32", num_threads=1) as llm:
        handles = [llm.submit([i], LONG, on_chunk=lambda _: None) for i in range(20)]
        for handle in handles:
            handle.add_done_callback(lambda handle: calls.append(handle.result(0).finish_reason))
    assert len(calls) == 20 and set(calls) <= {"cancelled", "length"}
    assert threading.active_count() <= before
    handles[0].add_done_callback(lambda handle: calls.append("after"))  # no thread is left: at once
    assert calls[20:] == ["after"]


def test_a_callback_may_close_the_engine(folder: Path) -> None:
    llm = paged.LLM(folder, dtype="float32", num_threads=1)
    closed = threading.Event()

    def close(_: paged.Handle) -> None:
        llm.close()
        closed.set()

    llm.submit([1], GREEDY).add_done_callback(close)
    assert closed.wait(60) and llm.closed


def test_an_engine_with_callbacks_is_collected(folder: Path) -> None:
    before = threading.active_count()
    llm = paged.LLM(folder, dtype="float32", num_threads=1)
    done = threading.Event()
    llm.submit([1], GREEDY).add_done_callback(lambda _: done.set())
    del llm
    gc.collect()
    assert done.wait(60)
    assert eventually(lambda: threading.active_count() <= before)

# SPDX-License-Identifier: Apache-2.0
"""Requests in event loops: awaited, iterated, cancelled with their tasks; in many loops and beside threads."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import paged
from step_gate import StepGate, gated_llm

GREEDY = paged.SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
LONG = paged.SamplingParams(temperature=0.0, max_tokens=240, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[paged.LLM]:
    with paged.LLM(folder, dtype="float32", num_threads=1) as llm:
        yield llm


async def tokens_of(handle: paged.Handle) -> list[int]:
    return [token async for chunk in handle for token in chunk.token_ids]


def test_generate_and_stream_give_what_the_blocking_ones_do(llm: paged.LLM) -> None:
    prompts = [[3 + i, 4 + i] for i in range(20)]
    expected = [c.token_ids for c in llm.generate(prompts, GREEDY, use_tqdm=False)]

    async def main() -> None:
        view = paged.AsyncLLM(llm)
        assert [c.token_ids for c in await view.generate(prompts, GREEDY)] == expected
        one = await view.generate(prompts[0], GREEDY)
        assert isinstance(one, paged.Completion) and one.token_ids == expected[0]
        assert await asyncio.gather(*(tokens_of(view.stream(p, GREEDY)) for p in prompts)) == expected
        awaited = await asyncio.gather(*(llm.submit(p, GREEDY) for p in prompts))
        assert [c.token_ids for c in awaited] == expected
        with pytest.raises(ValueError, match="prompt 1 of 2"):
            await view.generate([[1], []], GREEDY)

    asyncio.run(main())


def test_scores_are_those_of_the_blocking_call(llm: paged.LLM) -> None:
    pairs = [([5, 6, 7], [8, 9]), ([5, 6], [10])]
    expected = llm.score(pairs, use_tqdm=False)
    assert asyncio.run(paged.AsyncLLM(llm).score(pairs)) == expected
    with pytest.raises(ValueError, match="pair 1"):
        asyncio.run(paged.AsyncLLM(llm).score([*pairs[:1], ([1] * 10_000, [2])]))


def test_one_thread_serves_all_requests_of_all_loops(llm: paged.LLM) -> None:
    expected = llm.generate([5, 6], LONG).token_ids
    asyncio.run(tokens_of(llm.submit([5, 6], GREEDY)))  # the thread starts with the first wait
    before = threading.active_count()
    most = 0

    async def main() -> list[list[int]]:
        nonlocal most
        results = asyncio.gather(*(tokens_of(llm.submit([5, 6], LONG)) for _ in range(20)))
        while not results.done():
            most = max(most, threading.active_count())
            await asyncio.sleep(0)
        return list(await results)

    with ThreadPoolExecutor(3) as pool:
        several = list(pool.map(lambda _: asyncio.run(main()), range(3)))
    assert several == [[expected] * 20] * 3
    assert most <= before + 3


def test_the_loop_goes_on_while_a_request_runs(folder: Path) -> None:
    with gated_llm(folder) as (llm, gate):

        async def main() -> int:
            request = asyncio.ensure_future(llm.submit([5], GREEDY))
            for _ in range(10):  # turns of the loop, while the engine stands still
                await asyncio.sleep(0)
            assert not request.done()
            gate.open()
            return len((await request).token_ids)

        assert asyncio.run(main()) == 20


def test_cancelling_the_task_cancels_the_request(folder: Path) -> None:
    async def read(handle: paged.Handle) -> None:
        async for _ in handle:
            pass

    async def wait(handle: paged.Handle) -> None:
        await handle

    async def main(llm: paged.LLM, gate: StepGate) -> None:
        handles = [llm.submit([i], GREEDY) for i in range(4)]
        tasks = [asyncio.create_task(wait(handles[0])), asyncio.create_task(read(handles[1]))]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(handles[2], 0.01)
        gate.open()
        assert all(isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*tasks, return_exceptions=True))
        assert [(await handle).finish_reason for handle in handles] == ["cancelled"] * 3 + ["length"]

    with gated_llm(folder) as (llm, gate):
        asyncio.run(main(llm, gate))


def test_cancelling_generate_cancels_all_its_requests(folder: Path) -> None:
    with gated_llm(folder, max_num_sequences=1) as (llm, gate):

        async def main() -> None:
            task = asyncio.create_task(paged.AsyncLLM(llm).generate([[1]] * 50, GREEDY))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        gate.allow(1 + 20)
        assert llm.generate([1], GREEDY).finish_reason == "length"  # it was behind all 50


def test_leaving_the_with_block_cancels(folder: Path) -> None:
    async def main(llm: paged.LLM, gate: StepGate) -> paged.Completion:
        async with llm.submit([5], GREEDY) as handle:
            gate.allow(2)
            async for _ in handle:
                break
        gate.open()
        return await handle

    with gated_llm(folder) as (llm, gate):
        assert asyncio.run(main(llm, gate)).finish_reason == "cancelled"


def test_a_loop_that_goes_away_takes_its_requests_along(folder: Path) -> None:
    with gated_llm(folder) as (llm, gate):
        loop = asyncio.new_event_loop()  # closed without a word to its tasks
        asyncio.ensure_future(llm.submit([6], GREEDY), loop=loop)  # noqa: RUF006
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()
        gc.collect()
        gate.open()
        assert llm.generate([7], GREEDY).finish_reason == "length"
        assert llm.stats().num_running == llm.stats().num_waiting == 0


def test_open_and_close_do_not_block_the_loop(folder: Path) -> None:
    async def main() -> None:
        async with await paged.AsyncLLM.open(folder, dtype="float32", num_threads=1) as llm:
            assert (await llm.generate([1], GREEDY)).finish_reason == "length"
            running = llm.stream([2], LONG)
        assert (await running).finish_reason in ("cancelled", "length")
        assert llm.llm.closed
        with pytest.raises(paged.EngineClosedError):
            await llm.generate([1], GREEDY)

    asyncio.run(main())


def test_blocking_calls_work_inside_a_running_loop(llm: paged.LLM) -> None:
    """As in a notebook's cell: no nested loop, nothing to patch."""

    async def cell() -> list[int]:
        assert [t for chunk in llm.stream([5], GREEDY) for t in chunk.token_ids]
        return llm.generate([5], GREEDY).token_ids

    assert asyncio.run(cell()) == llm.generate([5], GREEDY).token_ids


def test_errors_reach_who_awaits(llm: paged.LLM) -> None:
    with pytest.raises(TypeError, match="AsyncLLM takes an LLM"):
        paged.AsyncLLM("model")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chat template"):
        asyncio.run(paged.AsyncLLM(llm).chat([{"role": "user", "content": "x"}]))

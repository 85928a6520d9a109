# SPDX-License-Identifier: Apache-2.0
"""Sessions on a tiny model: their answers are those of plain requests with the same tokens, whatever is announced."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import paged
from paged import AsyncSession
from step_gate import StepGate, gated_llm

GREEDY = paged.SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[paged.LLM]:
    with paged.LLM(folder, dtype="float32", num_threads=1, block_size=4) as llm:
        yield llm


def ids(seed: int, count: int) -> list[int]:
    return random.Random(seed).choices(range(3, 300), k=count)


def plain(llm: paged.LLM, tokens: list[int], params: paged.SamplingParams = GREEDY) -> list[int]:
    return llm.generate(tokens, params).token_ids


def test_turns_equal_plain_requests_of_all_tokens(llm: paged.LLM) -> None:
    tokens: list[int] = []
    with llm.session() as session:
        for turn in range(4):
            added = ids(turn, 5 + turn)
            completion = session.generate(added, GREEDY)
            assert completion.token_ids == plain(llm, tokens + added)
            assert completion.num_prompt_tokens == len(tokens) + len(added)
            tokens += added + completion.token_ids
            assert session.token_ids == tokens
        told = session.explain()
        assert told.num_turns == 4 and told.state == "idle" and told.misses == ()
        assert told.num_reused_tokens > 0 and told.resident_bytes > 0


def test_stream_and_cancel_keep_what_has_come(llm: paged.LLM, folder: Path) -> None:
    long = paged.SamplingParams(temperature=0.0, max_tokens=150, ignore_eos=True)
    with gated_llm(folder) as (gated, gate), gated.session() as session:
        handle = session.stream(ids(1, 6), long)
        gate.allow(3)
        next(handle)
        with pytest.raises(RuntimeError, match="has not ended"):
            session.generate([5], GREEDY)
        handle.cancel()
        gate.open()
        completion = handle.result()
        assert completion.finish_reason == "cancelled" and 0 < len(completion.token_ids) < 150
        assert session.token_ids == ids(1, 6) + completion.token_ids
        assert session.generate([7], GREEDY).token_ids == plain(llm, ids(1, 6) + completion.token_ids + [7])


def test_append_while_the_tool_runs(llm: paged.LLM) -> None:
    with llm.session() as session:
        answer = session.generate(ids(2, 9), GREEDY).token_ids
        session.pause("pytest", expect=30.0)
        session.append(ids(3, 12))
        session.append(ids(4, 7))
        tokens = ids(2, 9) + answer + ids(3, 12) + ids(4, 7)
        assert session.token_ids == tokens
        told = session.explain()
        assert told.state == "paused" and told.tool == "pytest", "the tool still runs"
        completion = session.generate([9], GREEDY)
        assert completion.token_ids == plain(llm, [*tokens, 9])
        assert completion.num_cached_tokens >= len(tokens) - 4, "it was computed meanwhile"


def test_fork_rewind_and_edit_are_exact(llm: paged.LLM) -> None:
    with llm.session() as session:
        answer = session.generate(ids(5, 11), GREEDY).token_ids
        tokens = ids(5, 11) + answer
        with session.fork() as child, llm.session(parent=session) as other:
            assert child.token_ids == other.token_ids == tokens
            assert child.generate([8, 9], GREEDY).token_ids == plain(llm, [*tokens, 8, 9])
            shared, alone = session.explain(), llm.explain(session)
            assert shared == alone or shared.since != alone.since
            assert shared.charged_bytes < shared.resident_bytes
        assert session.rewind(6).status == "accepted"
        assert session.generate([4], GREEDY).token_ids == plain(llm, [*tokens[:6], 4])
        tokens = session.token_ids
        assert session.edit((2, 5), [17]).status == "accepted"
        edited = [*tokens[:2], 17, *tokens[5:]]
        assert session.token_ids == edited
        assert session.generate([4], GREEDY).token_ids == plain(llm, [*edited, 4])
        with pytest.raises(ValueError, match="a span"):
            session.edit((5, 2), [1])


def test_hints_never_change_answers(folder: Path) -> None:
    """Several sessions in a pool too small for all, with random announcements, and plain requests between them."""
    rng = random.Random(0)
    with (
        paged.LLM(folder, dtype="float32", block_size=4, kv_cache_bytes=200_000, max_model_len=96) as llm,
        paged.LLM(folder, dtype="float32", num_threads=1, block_size=4, enable_prefix_caching=False) as oracle,
    ):
        sessions = [llm.session(weight=1.0 + i) for i in range(4)]
        tokens: list[list[int]] = [[] for _ in sessions]
        for turn in range(40):
            index = rng.randrange(len(sessions))
            session = sessions[index]
            if len(tokens[index]) > 75:
                assert session.rewind(20).status == "accepted"
                del tokens[index][20:]
            added = ids(turn, rng.randint(1, 9))
            answer = session.generate(added, GREEDY).token_ids
            assert answer == plain(oracle, tokens[index] + added)
            tokens[index] += added + answer
            expect = rng.choice([None, 0.01, 1e4, ((0.1, 0.5), (0.9, 20.0))])
            assert session.pause(rng.choice(["", "a", "b"]), expect).status == "accepted"
            if rng.random() < 0.3:
                session.progress(0.5)
            if rng.random() < 0.3:
                session.eta(rng.choice([0.0, 100.0]))
            if rng.random() < 0.2:
                session.pin(rng.choice([0.001, 50.0]))
            if rng.random() < 0.3:
                plain(llm, ids(1000 + turn, 60))
        assert [session.token_ids for session in sessions] == tokens
        assert any(session.explain().misses for session in sessions), "there was no pressure"


def test_receipts(llm: paged.LLM) -> None:
    session = llm.session()
    session.generate(ids(6, 20), GREEDY)
    pinned = session.pin(60.0)
    assert pinned.status == "accepted" and pinned.bytes > 0
    assert pinned.until is not None and 0 < pinned.until - time.monotonic() <= 60
    assert session.explain().is_held and 0 < session.explain().lease_left <= 60
    assert session.pin(60.0, budget=1).status == "rejected"
    assert session.progress(0.5).status == "rejected", "it waits for nothing"
    assert session.pause("a", 1.0).status == "accepted"
    assert session.eta(2.0).status == "accepted"
    assert session.progress(1.5).status == "rejected"
    assert session.rewind(10_000).reason.startswith("it has")
    assert session.close().status == "accepted"
    assert session.close().status == "rejected"
    with pytest.raises(ValueError, match="closed"):
        session.explain()


def test_what_cannot_be_is_refused(llm: paged.LLM) -> None:
    with llm.session() as session:
        with pytest.raises(ValueError, match="at least one token"):
            session.generate([], GREEDY)
        with pytest.raises(ValueError, match="at least one token"):
            session.generate(ids(1, llm.max_model_len), GREEDY)
        with pytest.raises(ValueError, match="one answer"):
            session.generate([5], paged.SamplingParams(n=2))
        for wrong in (-1.0, float("inf"), ((0.0, 1.0),)):
            with pytest.raises(ValueError, match="expect takes seconds"):
                session.pause("a", wrong)
        for descending in (((0.9, 1.0), (0.1, 2.0)), ((0.1, 2.0), (0.9, 1.0))):
            with pytest.raises(ValueError, match="ascending"):
                session.pause("a", descending)
        with pytest.raises(ValueError, match="ttl"):
            session.pin(0.0)
    with pytest.raises(ValueError, match="weight"):
        llm.session(weight=0.0)


def test_a_dropped_session_and_a_closed_engine(folder: Path) -> None:
    with paged.LLM(folder, dtype="float32", num_threads=1) as llm:
        dropped = llm.session()
        dropped.generate([5, 6], GREEDY)
        del dropped
        gc.collect()
        session = llm.session()
        session.generate([5, 6, 7], GREEDY)
    with pytest.raises(paged.EngineClosedError):
        session.pause("a")
    with pytest.raises(paged.EngineClosedError):
        session.generate([5], GREEDY)
    del session


def test_a_prefix_is_charged_once_and_outlives_its_handle(llm: paged.LLM) -> None:
    tokens = ids(7, 40)  # ten blocks
    with llm.prefix(tokens) as base:
        assert base.token_ids == tokens
        size = base.explain().resident_bytes
        assert base.explain().charged_bytes == size > 0
        sessions = [llm.session(parent=base, weight=2.0) for _ in range(3)]
        answers = [session.generate(ids(8, 3), GREEDY) for session in sessions]
        assert [answer.token_ids for answer in answers] == [plain(llm, tokens + ids(8, 3))] * 3
        assert all(answer.num_cached_tokens >= 40 for answer in answers)
        # The three have computed the same, too: all of it is charged in equal parts.
        told = [base.explain(), *(session.explain() for session in sessions)]
        assert told[0].charged_bytes == pytest.approx(size / 4)
        assert sum(each.charged_bytes for each in told) == pytest.approx(told[1].resident_bytes)
        assert base.close().status == "accepted"
    assert base.close().status == "rejected", "closed again, nothing happens"
    with pytest.raises(RuntimeError, match="before it is closed"):
        llm.session(parent=base)
    with pytest.raises(ValueError, match="closed"):
        base.explain()
    assert sessions[0].explain().charged_bytes == pytest.approx(sessions[0].explain().resident_bytes / 3)
    for session in sessions[:2]:
        session.close()
    last = sessions[2].explain()
    assert last.charged_bytes == last.resident_bytes
    assert sessions[2].generate([9], GREEDY).num_cached_tokens >= 40
    sessions[2].close()


def test_a_parent_has_its_tenant(llm: paged.LLM) -> None:
    with llm.prefix(ids(9, 20), tenant="a") as base, llm.session(parent=base) as session:
        assert "tenant='a'" in repr(session) and "tenant='a'" in repr(base)
        assert llm.session(parent=session, tenant="a").token_ids == ids(9, 20)
        with pytest.raises(ValueError, match="share no blocks"):
            llm.session(parent=base, tenant="b")
        with pytest.raises(ValueError, match="weight"):
            llm.session(parent=base, weight=-1.0)


def test_sessions_in_an_event_loop(llm: paged.LLM) -> None:
    async def work() -> None:
        engine = paged.AsyncLLM(llm)
        base = await engine.prefix(ids(10, 12))
        async with await engine.session(parent=base) as session:
            first = await session.generate(ids(11, 4), GREEDY)
            assert first.token_ids == plain(llm, ids(10, 12) + ids(11, 4))
            assert (await session.pause("a", expect=1.0)).status == "accepted"
            assert (await session.eta(0.5)).status == (await session.progress(0.5)).status == "accepted"
            await (await session.append(ids(12, 3)))
            assert (await session.pin(1.0)).status == "accepted"
            child = await session.fork()
            tokens = await session.token_ids()
            got = [token async for chunk in await child.stream([5], GREEDY) for token in chunk.token_ids]
            assert got == plain(llm, [*tokens, 5])
            assert (await session.rewind(8)).status == "accepted"
            assert (await session.edit((1, 2), [6])).status == "accepted"
            assert (await session.explain()).num_turns > 0
            assert (await child.close()).status == "accepted"
        assert session.session.close().status == "rejected"
        base.close()

    asyncio.run(work())


def test_a_cancelled_task_cancels_its_turn(folder: Path) -> None:
    async def work(session: AsyncSession, gate: StepGate) -> None:
        turn = asyncio.ensure_future(session.generate(ids(1, 6), dataclasses.replace(GREEDY, max_tokens=100)))
        while session.session._turn is None:
            await asyncio.sleep(0.001)
        turn.cancel()
        with pytest.raises(asyncio.CancelledError):
            await turn
        gate.open()
        handle = session.session._turn
        assert (await asyncio.to_thread(handle._wait_finished)) and handle._completion().finish_reason == "cancelled"
        assert (await session.generate([5], GREEDY)).finish_reason == "length"

    with gated_llm(folder) as (llm, gate), llm.session() as session:
        asyncio.run(work(AsyncSession(session), gate))

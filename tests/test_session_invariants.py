# SPDX-License-Identifier: Apache-2.0
"""What holds whatever agents announce: the invariants of sessions, one test or more each, on the whole engine.

The core's own tests (tests/cpp/test_core_sessions*.cpp, test_core_invariants.cpp) have what is seen only there: every
resident block is reachable, victims are found without a scan, all is counted after every call.
"""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import paged
from step_gate import gated_llm

GREEDY = paged.SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
NUM_BLOCKS, STEP_BLOCKS = 40, 8
SIZES: dict[str, Any] = {
    "dtype": "float32",
    "num_threads": 1,
    "block_size": 4,
    "max_num_batched_tokens": 16,
    "max_num_sequences": 4,
    "max_model_len": 96,
}


@contextmanager
def small_llm(folder: Path, num_blocks: int = NUM_BLOCKS, **options: Any) -> Iterator[paged.LLM]:
    """A pool of so many blocks of 4 tokens."""
    with paged.LLM(folder, dtype="float32", num_threads=1, block_size=4) as big:
        block = big._bytes_per_block
    with paged.LLM(folder, kv_cache_bytes=num_blocks * block, **SIZES | options) as llm:
        assert llm.stats().num_blocks == num_blocks
        yield llm


def ids(seed: int, count: int) -> list[int]:
    return random.Random(seed).choices(range(3, 300), k=count)


def blocks(llm: paged.LLM, num_bytes: float) -> float:
    return num_bytes / llm._bytes_per_block


def announce(session: paged.Session, rng: random.Random) -> None:
    """Any hints, the more senseless the better."""
    session.pause(rng.choice("abc"), rng.choice([None, 0.0, 1e-3, 1e9, ((0.1, 0.0), (0.9, 1e9))]))
    for _ in range(rng.randrange(3)):
        rng.choice([
            lambda: session.eta(rng.choice([0.0, 1e9])),
            lambda: session.progress(rng.choice([1e-9, 1.0])),
            lambda: session.pin(rng.choice([1e-3, 1e6]), rng.choice([None, 1, 2**40])),
        ])()  # fmt: skip


# 1. Hints never change outputs.


@pytest.mark.parametrize("policy", ["lru", "ttl:0.05", "priority", "hazard"])
def test_invariant_1_hints_never_change_outputs(folder: Path, policy: str) -> None:
    def answers(hints: random.Random | None) -> list[list[int]]:
        given = []
        with small_llm(folder, policy=policy) as llm:
            sessions = [llm.session(weight=hints.choice([1e-6, 1.0, 1e6]) if hints else None) for _ in range(4)]
            for turn in range(30):
                session = sessions[turn * turn % 4]
                if len(session.token_ids) > 70:
                    session.rewind(20)
                given.append(session.generate(ids(turn, 8), paged.SamplingParams(max_tokens=4, seed=turn)).token_ids)
                if hints is not None:
                    announce(session, hints)
        return given

    plain = answers(None)
    for seed in (1, 2):
        assert answers(random.Random(seed)) == plain


# 2. Progress: leases leave what one step may need; who waits owns nothing that cannot be taken, but for its lease.


def test_invariant_2_leases_leave_what_one_step_may_need(folder: Path) -> None:
    with small_llm(folder) as llm:
        sessions = [llm.session() for _ in range(6)]
        for seed, session in enumerate(sessions):
            session.generate(ids(seed, 30), GREEDY)
            session.pin(1e6, 2**40)
            leased = sum(each.explain().leased_bytes for each in sessions)
            assert blocks(llm, leased) <= NUM_BLOCKS - STEP_BLOCKS
        assert blocks(llm, leased) == NUM_BLOCKS - STEP_BLOCKS
        assert llm.generate(ids(7, 90), GREEDY).finish_reason == "length", "a lease is no lock"


def test_invariant_2_a_waiting_session_owns_nothing_that_cannot_be_taken(folder: Path) -> None:
    with small_llm(folder) as llm:
        sessions = [llm.session(weight=1e9) for _ in range(3)]
        for seed, session in enumerate(sessions):
            session.generate(ids(seed, 36), GREEDY)
            session.pause("a", 1e9)
        assert llm.stats().num_free_blocks == NUM_BLOCKS
        assert llm.generate(ids(8, 92), paged.SamplingParams(max_tokens=4, ignore_eos=True)).error is None
        assert llm.stats().num_preemptions == 0


# 3. No hold-and-wait: who waits to run holds nothing, so any number of turns of any size comes to its end.


def test_invariant_3_turns_that_together_do_not_fit_all_end(folder: Path) -> None:
    with small_llm(folder) as llm:
        sessions = [llm.session(weight=1.0 + seed) for seed in range(8)]
        for turn in range(3):
            handles = [
                session.stream(ids(10 * turn + seed, 20 if turn == 0 else 4), GREEDY)
                for seed, session in enumerate(sessions)
            ]
            for session, handle in zip(sessions, handles, strict=True):
                assert handle.result(60).finish_reason == "length"
                session.pause("a", 1e6)
                session.pin(1e6, 2**40)


# 4. Bounded wait for everybody; a cancelled one makes room at once.


def test_invariant_4_nobody_waits_for_ever(folder: Path) -> None:
    """A session that has nothing yet gets its room while others, which are held, come without end."""
    with small_llm(folder) as llm, llm.session() as newcomer:
        stop, begun = threading.Event(), threading.Semaphore(0)

        def crowd(seed: int) -> None:
            with llm.session(weight=1e6) as session:
                for turn in range(100_000):
                    if stop.is_set():
                        return
                    session.rewind(0)
                    session.generate(ids(1000 * seed + turn, 40), GREEDY)
                    session.pause("a", 1e-3)
                    begun.release()

        threads = [threading.Thread(target=crowd, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                assert begun.acquire(timeout=60)
            assert newcomer.stream(ids(1, 60), GREEDY).result(60).finish_reason == "length"
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def test_invariant_4_cancelling_admits_those_who_wait(folder: Path) -> None:
    with gated_llm(folder, block_size=4, max_num_sequences=1, max_num_batched_tokens=64) as (llm, gate):
        running = llm.submit(ids(1, 8), paged.SamplingParams(max_tokens=100, ignore_eos=True))
        gate.allow(2)
        next(running)
        waiting = llm.submit(ids(2, 8), GREEDY)
        running.cancel()
        gate.allow(5)  # the one under way, and four of the other's: none is left for the first
        assert waiting.result(60).finish_reason == "length"
        assert running.result().finish_reason == "cancelled"


# 5. Floors of tenants; shared bytes are charged once and split.


def test_invariant_5_a_tenant_below_its_floor_loses_nothing_to_others(folder: Path) -> None:
    with small_llm(folder) as llm:
        block = llm._bytes_per_block
        assert llm.set_tenant("a", floor=10 * block).status == "accepted"
        with llm.session(tenant="a", weight=1e-9) as small, llm.session(tenant="b", weight=1e9) as large:
            small.generate(ids(1, 36), GREEDY)
            small.pause("a", 1e9)
            mine = small.explain().resident_bytes
            for turn in range(20):
                large.generate(ids(turn, 80), GREEDY)
                large.pin(1e6)
                large.rewind(0)
                llm.generate(ids(100 + turn, 92), GREEDY)
                assert small.explain().resident_bytes == mine
            assert small.generate([5], GREEDY).num_cached_tokens == 36
            assert not small.explain().misses


def test_invariant_5_every_byte_is_charged_once(folder: Path) -> None:
    rng = random.Random(3)
    with small_llm(folder) as llm:
        sessions: list[paged.Session] = []
        for turn in range(60):
            if len(sessions) < 3:
                sessions.append(llm.session(tenant=rng.choice("ab")))
            session = rng.choice(sessions)
            match rng.randrange(5):
                case 0 if len(sessions) < 7:
                    sessions.append(session.fork())
                case 1:
                    sessions.remove(session)
                    session.close()
                case 2:
                    session.rewind(rng.randrange(len(session.token_ids) + 1))
                case _ if len(session.token_ids) < 70:
                    session.generate(ids(rng.randrange(4), 9), GREEDY)
            told = [(each._tenant, each.explain()) for each in sessions]
            for name, tenant in llm.tenants().items():
                charged = sum(each.charged_bytes for owner, each in told if owner == name)
                assert charged == pytest.approx(tenant.charged_bytes), turn
                assert tenant.num_sessions == sum(owner == name for owner, _ in told)


# 6. Close, garbage collection and exceptions release, once; late news of what is closed reach nobody.


def test_invariant_6_whatever_ends_a_session_releases_it_once(folder: Path) -> None:
    with small_llm(folder) as llm:

        def used() -> list[paged.Session]:
            parent = llm.session()
            parent.generate(ids(1, 20), GREEDY)
            return [parent, parent.fork()]

        closed, fork = used()
        assert closed.close().status == "accepted"
        assert [closed.close().status for _ in range(3)] == ["rejected"] * 3
        assert llm.tenants()[""].charged_bytes == fork.explain().resident_bytes > 0, "the last owner frees"
        dropped = used()
        del dropped, fork
        gc.collect()
        with pytest.raises(KeyError), llm.session() as session:
            session.generate(ids(2, 20), GREEDY)
            raise KeyError
        # An engine's next command comes after those of the garbage collector.
        assert llm.tenants() == {"": paged.Tenant(0, 0, 0)}
        new = llm.session()
        assert new._id > session._id, "ids are never used again"
        new.generate(ids(3, 20), GREEDY)
        before = new.explain()
        for late in (closed.pause("a"), closed.pin(1.0), closed.rewind(0), closed.eta(1.0), session.close()):
            assert late.status == "rejected" and late.reason.endswith("is closed")
        after = new.explain()
        assert (before.state, before.resident_bytes) == (after.state, after.resident_bytes)


def test_invariant_6_a_failing_turn_leaves_the_session_as_it_was(folder: Path) -> None:
    def fail(token_ids: list[int], logits: Any) -> Any:
        raise RuntimeError("no")

    with small_llm(folder) as llm, llm.session() as session:
        session.generate(ids(1, 20), GREEDY)
        tokens = session.token_ids
        with pytest.raises(paged.RequestError, match="no"):
            session.generate([5, 6], paged.SamplingParams(logits_processors=[fail]))
        assert session.token_ids == [*tokens, 5, 6], "it keeps the prompt, and goes on"
        session.rewind(len(tokens))
        assert session.generate([7], GREEDY).token_ids == llm.generate([*tokens, 7], GREEDY).token_ids


# 9. Sessions of different tenants share nothing, nor do tenants and plain requests.


def test_invariant_9_tenants_share_nothing(folder: Path) -> None:
    tokens = ids(1, 40)
    with small_llm(folder, num_blocks=100) as llm:
        first, again, other = llm.session(tenant="a"), llm.session(tenant="a"), llm.session(tenant="b")
        answer = first.generate(tokens, GREEDY)
        assert again.generate(tokens, GREEDY).num_cached_tokens >= 36
        for stranger in (other.generate(tokens, GREEDY), llm.generate(tokens, GREEDY)):
            assert stranger.num_cached_tokens == 0 and stranger.token_ids == answer.token_ids
        assert first.explain().charged_bytes < first.explain().resident_bytes == other.explain().charged_bytes


# 11. Neutral where all fits, and without hints.


def test_invariant_11_where_all_fits_the_policy_and_hints_change_nothing(folder: Path) -> None:
    def run(policy: str, hints: random.Random | None) -> list[int]:
        cached = []
        with small_llm(folder, num_blocks=400, policy=policy) as llm:
            sessions = [llm.session() for _ in range(5)]
            for turn in range(40):
                session = sessions[turn * 7 % 5]
                cached.append(session.generate(ids(turn, 6), GREEDY).num_cached_tokens)
                if hints is not None:
                    announce(session, hints)
            assert not any(session.explain().misses for session in sessions)
        return cached

    expected = run("lru", None)
    assert sum(expected) > 1000
    for policy in ("ttl:0.01", "priority", "hazard"):
        assert run(policy, None) == run(policy, random.Random(4)) == expected


def test_invariant_11_without_sessions_all_policies_are_the_same(folder: Path) -> None:
    def run(policy: str) -> list[int]:
        with small_llm(folder, policy=policy) as llm:
            prompts = [ids(turn % 7, 20 + turn % 5) for turn in range(60)]
            return [llm.generate(prompt, GREEDY).num_cached_tokens for prompt in prompts]

    expected = run("lru")
    for policy in ("ttl", "priority", "hazard"):
        assert run(policy) == expected


def test_invariant_11_plain_requests_profit_from_a_session_without_any_hint(folder: Path) -> None:
    with small_llm(folder) as llm, llm.session() as session:
        session.generate(ids(1, 40), GREEDY)
        assert llm.generate([*ids(1, 40), 5], GREEDY).num_cached_tokens == 40

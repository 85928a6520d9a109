# SPDX-License-Identifier: Apache-2.0
"""Cache policies by name and in Python: what they decide, and that nobody waits for them."""

from __future__ import annotations

import ctypes
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import paged
from backends import until

GREEDY = paged.SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
NUM_BLOCKS = 40


@contextmanager
def open_llm(folder: Path, policy: Any) -> Iterator[paged.LLM]:
    options: dict[str, Any] = {"dtype": "float32", "num_threads": 1, "block_size": 4, "max_model_len": 96}
    with paged.LLM(folder, **options) as big:
        block = big._bytes_per_block
    options |= {"max_num_batched_tokens": 16, "max_num_sequences": 4}
    with paged.LLM(folder, kv_cache_bytes=NUM_BLOCKS * block, policy=policy, **options) as llm:
        yield llm


def ids(seed: int, count: int) -> list[int]:
    return random.Random(seed).choices(range(3, 300), k=count)


def resident(llm: paged.LLM, session: paged.Session) -> int:
    return session.explain().resident_bytes // llm._bytes_per_block


def two_paused_and_a_squeeze(llm: paged.LLM, prepare: Callable[[], None] = lambda: None) -> tuple[int, int]:
    """Blocks left of two sessions of ten blocks each, the first used before the second, when 24 of 40 are needed."""
    with llm.session(weight=3.0) as first, llm.session(weight=1.0) as second:
        for seed, session in enumerate((first, second)):
            session.generate(ids(seed, 40), GREEDY)
            session.pause("a", 1.0)
        prepare()
        llm.generate(ids(9, 95), GREEDY)
        return resident(llm, first), resident(llm, second)


def test_policies_by_name(folder: Path) -> None:
    with open_llm(folder, "lru") as llm:
        assert two_paused_and_a_squeeze(llm) == (6, 10), "the least recently used"
        assert llm.stats().policy == "lru"
    with open_llm(folder, "priority") as llm:
        assert two_paused_and_a_squeeze(llm) == (10, 6), "the one of less weight"
    with open_llm(folder, "ttl:0.01") as llm, llm.session() as session:
        assert llm.stats().policy == "ttl:0.01"
        session.generate(ids(1, 40), GREEDY)
        until(lambda: not session.explain().is_held)
    with open_llm(folder, "ttl") as llm, llm.session() as session:
        session.generate(ids(1, 40), GREEDY)
        assert session.explain().is_held and llm.stats().policy == "ttl:60"


def test_what_is_no_policy_is_refused(folder: Path) -> None:
    class Impatient(paged.Policy):
        patience = 0.0

    class Homeless(paged.Policy):
        fallback = "mru"  # type: ignore[assignment]

    for wrong in ("fifo", "ttl:", "ttl:-1", "ttl:inf", Impatient(), Homeless()):
        with pytest.raises(ValueError, match="polic"):
            paged.LLM(folder, policy=wrong)
    with pytest.raises(TypeError, match="policy takes"):
        paged.LLM(folder, policy=paged.Policy)  # type: ignore[arg-type]


class ByTool(paged.Policy):
    """The later the tool's name in the alphabet, the more is it worth."""

    def __init__(self) -> None:
        self.threads: set[str] = set()
        self.events: list[tuple[str, int]] = []
        self.seen: list[paged.SessionView] = []

    def score(self, session: paged.SessionView, pressure: paged.Pressure) -> paged.Worth | float:
        self.threads.add(threading.current_thread().name)
        self.seen.append(session)
        assert pressure.num_blocks == NUM_BLOCKS and pressure.block_size == 4 and pressure.seconds_per_token > 0
        return paged.Worth(ord(session.tool or "m"), hold=session.tool == "z", valid_for=1000.0)

    def on_event(self, event: str, session: paged.SessionView) -> None:
        self.events.append((event, session.id))


def test_a_policy_in_python_decides(folder: Path) -> None:
    policy = ByTool()
    with open_llm(folder, policy) as llm:
        assert llm.stats().policy == "ByTool, fallback hazard"
        first, second = llm.session(tenant="t", weight=2.0), llm.session(tenant="t")
        for tools in (("z", "a"), ("b", "y")):
            for session in (first, second):
                session.rewind(0)
                session.generate(ids(session._id, 40), GREEDY)
            first.pause(tools[0], ((0.5, 1.0), (0.9, 5.0)))
            second.pause(tools[1])
            until(lambda tools=tools: {view.tool for view in policy.seen[-2:]} == set(tools))  # type: ignore[misc]
            until(lambda tools=tools: first.explain().is_held == (tools[0] == "z"))  # type: ignore[misc]
            time.sleep(0.05)  # the second's proposal, which shows nowhere
            llm.generate(ids(len(policy.seen), 95), GREEDY)
            least = second if tools[0] == "z" else first
            assert resident(llm, least) < 10 and resident(llm, first) + resident(llm, second) > 10
        assert policy.threads == {"paged-policy"}
        view = next(view for view in policy.seen if view.tool == "z")
        assert (view.id, view.tenant, view.state, view.weight) == (first._id, "t", "paused", 2.0)
        assert view.expect == ((0.5, 1.0), (0.9, 5.0)) and view.num_tokens == view.num_resident_tokens == 40
        first.close()
        until(lambda: ("closed", first._id) in policy.events)
        assert policy.events.count(("paused", first._id)) == 2
        assert llm.stats().num_failed_proposals == 0
    until(lambda: not any(thread.name == "paged-policy" for thread in threading.enumerate()))


def test_admission_and_place_in_python(folder: Path) -> None:
    class Doorman(paged.Policy):
        def place(self, session: paged.SessionView, pressure: paged.Pressure) -> Any:
            return "nowhere" if session.tool == "long" else "device"

        def admit(self, session: paged.SessionView, pressure: paged.Pressure) -> bool:
            return session.tool != "long"

    with open_llm(folder, Doorman()) as llm, llm.session() as session:
        session.generate(ids(1, 40), GREEDY)
        session.pause("long")
        time.sleep(0.05)
        session.append(ids(2, 3)).result()  # waits for room, of which there is enough
        assert len(session.token_ids) == 44


def test_one_that_fails_falls_back_and_says_so_once(folder: Path) -> None:
    class Broken(paged.Policy):
        fallback = "priority"

        def score(self, session: paged.SessionView, pressure: paged.Pressure) -> float:
            raise SystemExit("no") if session.id % 2 else ValueError("no")

        def on_event(self, event: str, session: paged.SessionView) -> None:
            raise KeyError(event)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with open_llm(folder, Broken()) as llm:
            assert two_paused_and_a_squeeze(llm) == (10, 6), "as 'priority' does"
            until(lambda: llm.stats().num_failed_proposals > 5)
            assert f"paged_policy_failed_total {llm.stats().num_failed_proposals}" in _prometheus(llm)
    mine = [str(each.message) for each in caught if issubclass(each.category, RuntimeWarning)]
    assert len(mine) == 1 and "Broken has failed" in mine[0] and "'priority' decides" in mine[0]


def _prometheus(llm: paged.LLM) -> str:
    from paged.metrics import prometheus_text

    return prometheus_text(llm)


def test_proposals_that_are_no_numbers_fail(folder: Path) -> None:
    class Odd(paged.Policy):
        def score(self, session: paged.SessionView, pressure: paged.Pressure) -> Any:
            return [float("nan"), "much", paged.Worth(1.0, valid_for=-1.0)][len(session.tool) % 3]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_llm(folder, Odd()) as llm, llm.session() as session:
            session.generate(ids(1, 40), GREEDY)
            for tool in ("", "a", "ab"):
                before = llm.stats().num_failed_proposals
                session.pause(tool)
                until(lambda before=before: llm.stats().num_failed_proposals > before)  # type: ignore[misc]


def test_nobody_waits_for_one_that_sleeps(folder: Path) -> None:
    """It never answers while the test runs: everything goes as the fallback says. Then it is late."""
    woken = threading.Event()

    class Sleeper(paged.Policy):
        fallback = "priority"
        patience = 0.01

        def score(self, session: paged.SessionView, pressure: paged.Pressure) -> float:
            assert woken.wait(60)
            return -1e9 * session.weight

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with open_llm(folder, Sleeper()) as llm, llm.session() as kept:
            kept.generate(ids(1, 8), GREEDY)
            assert two_paused_and_a_squeeze(llm)[0] == 10, "as 'priority' does"
            time.sleep(0.02)
            woken.set()
            until(lambda: llm.stats().num_late_proposals > 0)
            assert llm.stats().num_failed_proposals == 0
            kept.generate(ids(2, 3), GREEDY)  # one more question, after which it sees that it was late
            until(lambda: any("too late" in str(each.message) for each in caught))


def test_an_engine_ends_while_its_policy_hangs(folder: Path) -> None:
    woken = threading.Event()

    class Hanging(paged.Policy):
        def score(self, session: paged.SessionView, pressure: paged.Pressure) -> None:
            woken.wait(60)

    with open_llm(folder, Hanging()) as llm:
        session = llm.session()
        answer = session.generate(ids(1, 30), GREEDY)
        assert answer.finish_reason == "length"
    with pytest.raises(paged.EngineClosedError):
        session.pause("a")
    woken.set()
    until(lambda: not any(thread.name == "paged-policy" for thread in threading.enumerate()))


def test_the_engine_steps_while_its_policy_holds_the_gil(folder: Path) -> None:
    """Requests come to their end while the policy's thread has the GIL, and gives it to nobody."""
    held: list[tuple[float, float]] = []

    class Hog(paged.Policy):
        def score(self, session: paged.SessionView, pressure: paged.Pressure) -> None:
            if session.tool == "hog":
                started = time.monotonic()
                ctypes.PyDLL(None).usleep(ctypes.c_uint(100_000))  # PyDLL keeps the GIL
                held.append((started, time.monotonic()))

    params = paged.SamplingParams(max_tokens=80, ignore_eos=True)
    with open_llm(folder, Hog()) as llm, llm.session() as session:
        for _ in range(10):
            handles = [(time.monotonic(), llm.submit(ids(seed, 8), params)) for seed in range(300)]
            session.pause("hog")
            ends = [submitted + (handle.result().timings.total_seconds or 0.0) for submitted, handle in handles]
            if any(start < end < stop for start, stop in held for end in ends):
                return
    raise AssertionError("no request has ended while the policy had the GIL")


def test_answers_do_not_depend_on_the_policy(folder: Path) -> None:
    class Random(paged.Policy):
        def __init__(self) -> None:
            self.random = random.Random(5)

        def score(self, session: paged.SessionView, pressure: paged.Pressure) -> paged.Worth:
            return paged.Worth(self.random.random(), self.random.random() < 0.5, self.random.random() / 50)

        def admit(self, session: paged.SessionView, pressure: paged.Pressure) -> bool:
            return self.random.random() < 0.5

    def answers(policy: Any) -> list[list[int]]:
        with open_llm(folder, policy) as llm:
            sessions = [llm.session() for _ in range(4)]
            result = []
            for turn in range(24):
                session = sessions[turn * 7 % 4]
                if len(session.token_ids) > 60:
                    session.rewind(11)
                result.append(session.generate(ids(turn, 9), paged.SamplingParams(max_tokens=4, seed=3)).token_ids)
                session.pause("abc"[turn % 3], turn / 10)
            return result

    expected = answers("lru")
    for policy in ("ttl:0.1", "priority", "hazard", Random()):
        assert answers(policy) == expected, policy

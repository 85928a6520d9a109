# SPDX-License-Identifier: Apache-2.0
"""The agents of `agent_workload.py` against the real engine: threads, sessions and sleeps instead of a virtual clock.

Once as sessions that pause under the default policy ("hazard"), once with each turn as a plain request, which is LRU
("lru"), in the same engine. Tokens are scaled down further, and tools so that computing a median context takes as many
median tools as it does for the replay's device. rho is that of a replay with an endless cache; what it really was is
reported. Greedy, and as many tokens as the trace says.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import agent_workload
import bench_agents
import paged
from agent_workload import Agent, Shape, Turn
from table import Record

MEDIAN_CONTEXT = 20_000 // agent_workload.SCALE  # tokens, scaled
MEDIAN_TOOL = 0.3  # seconds
MAX_GAP = 10.0  # seconds that a scaled tool takes at most
STAGGER = 1.0
PREFIX_DIVISOR = 6  # of shared prompts besides: few agents of few turns have little beside them
VOCABULARY = 256  # ids that any model has

OpenEngine = Callable[[Mapping[str, Any]], AbstractContextManager[paged.LLM]]


@dataclass(frozen=True)
class RealCase:
    """What to run: `divisor` is of the workload's (scaled) tokens, `num_slots` root agents live at once."""

    name: str
    shape: Shape
    num_slots: int
    divisor: int
    bytes_per_token: int  # of the KV cache
    block_size: int
    rho: float = 2.0


def cpu_case(quick: bool) -> RealCase:
    """SmolLM2-135M in bfloat16; the GPU's agents with half as many tokens (quick: few, of 48 K at most, scaled)."""
    agents, slots, steps, longest = (16, 10, 10, 48_000) if quick else (48, 32, 40, 96_000)
    shape = Shape(num_agents=agents, max_steps=steps, max_tokens=longest // agent_workload.SCALE)
    return RealCase("real,cpu,rho=2", shape, slots, 2, 23_040, 16)


def gpu_case(quick: bool) -> RealCase:
    """An 8B model in bfloat16; contexts up to 64 K or 96 K tokens, scaled."""
    agents, slots, steps, longest = (40, 20, 32, 64_000) if quick else (48, 32, 40, 96_000)
    shape = Shape(num_agents=agents, max_steps=steps, max_tokens=longest // agent_workload.SCALE)
    return RealCase("real,gpu,rho=2", shape, slots, 1, 131_072, 64)


@dataclass
class Outcome:
    """What one run measured. Seconds; live tokens are the agents' own."""

    jobs: list[float] = field(default_factory=list)
    resumes: list[float] = field(default_factory=list)
    seconds: float = 0.0
    num_prefill_tokens: int = 0
    live_token_seconds: float = 0.0


def measure(case: RealCase, open_engine: OpenEngine) -> Iterator[Record]:
    """`open_engine` makes an engine with the options given."""
    agents = shrunk(agent_workload.generate(case.shape), case.divisor)
    replayed = bench_agents.Case(case.name, case.rho, case.shape, case.num_slots)
    endless = bench_agents.run(agents, bench_agents.ENGINES["lru"], 1_000_000, replayed)
    longest = max(agent_workload.longest_context(agents), MEDIAN_CONTEXT // case.divisor) + 2 * case.block_size
    pool = max(round(endless.mean_live_tokens / case.rho), longest + 4 * case.block_size)
    options = {
        "max_model_len": longest,
        "max_num_sequences": 2 * case.num_slots,
        "block_size": case.block_size,
        "kv_cache_bytes": pool * case.bytes_per_token,
    }
    with open_engine(options) as llm:
        time_scale = _time_scale(llm, case.divisor)
        slower = [_with_tools(agent, time_scale) for agent in agents]
        reference: dict[str, float] = {}
        for engine, driver in (("lru", PlainDriver), ("hazard", SessionDriver)):
            outcome = _Run(llm, slower, case.num_slots, driver).go()
            for metric, (value, unit) in _metrics(outcome, endless.num_new_tokens, pool).items():
                ratio = reference.setdefault(metric, value) / value if unit in ("s", "x") and value else None
                is_compared = engine != "lru" and ratio is not None
                yield Record("agents", case.name, engine, metric, value, unit, *(("lru", ratio) if is_compared else ()))


def shrunk(agents: list[Agent], divisor: int) -> list[Agent]:
    def turn(each: Turn) -> Turn:
        keep = each.keep if each.keep < 0 else max(1, each.keep // divisor)
        return replace(each, keep=keep, append=-(-each.append // divisor), output=-(-each.output // divisor))

    return [
        replace(
            agent,
            num_prefix_tokens=agent.num_prefix_tokens // divisor // PREFIX_DIVISOR,
            turns=[turn(each) for each in agent.turns],
        )
        for agent in agents
    ]


def _with_tools(agent: Agent, time_scale: float) -> Agent:
    return replace(agent, turns=[replace(turn, gap=min(turn.gap * time_scale, MAX_GAP)) for turn in agent.turns])


def _time_scale(llm: paged.LLM, divisor: int) -> float:
    """Of tools: so that they stand to computing a context as on the replay's device."""
    rng = random.Random(7)
    params = paged.SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    seconds = []
    for _ in range(4):
        prompt = [rng.randrange(VOCABULARY) for _ in range(MEDIAN_CONTEXT // divisor)]
        start = time.perf_counter()
        llm.generate(prompt, params)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:])) / bench_agents.DEVICE.prefill(0, MEDIAN_CONTEXT)


def _metrics(outcome: Outcome, num_new_tokens: int, pool: int) -> dict[str, tuple[float, str]]:
    return {
        "mean_job_time": (float(np.mean(outcome.jobs)), "s"),
        "job_time_p50": (float(np.percentile(outcome.jobs, 50)), "s"),
        "job_time_p95": (float(np.percentile(outcome.jobs, 95)), "s"),
        "resume_ttft_p50": (float(np.percentile(outcome.resumes, 50)), "s"),
        "resume_ttft_p95": (float(np.percentile(outcome.resumes, 95)), "s"),
        "prefill_amplification": (outcome.num_prefill_tokens / num_new_tokens, "x"),
        "makespan": (outcome.seconds, "s"),
        "rho": (outcome.live_token_seconds / outcome.seconds / pool, "live / pool"),
    }


class SessionDriver:
    """An agent as a session that says what it waits for."""

    def __init__(self, llm: paged.LLM, session: paged.Session | None = None) -> None:
        self._llm = llm
        self._session = session or llm.session()

    def rewind(self, num_tokens: int) -> None:
        self._session.rewind(num_tokens)

    def begin(self, token_ids: list[int], params: paged.SamplingParams) -> paged.Handle:
        return self._session.stream(token_ids, params)

    def end(self, completion: paged.Completion) -> None:
        pass

    def pause(self, tool: int) -> None:
        self._session.pause(agent_workload.TOOLS[tool])

    def fork(self) -> SessionDriver:
        return SessionDriver(self._llm, self._session.fork())

    def close(self) -> None:
        self._session.close()


class PlainDriver:
    """An agent whose turns are requests with all tokens so far."""

    def __init__(self, llm: paged.LLM, token_ids: list[int] | None = None) -> None:
        self._llm = llm
        self._token_ids = list(token_ids or ())

    def rewind(self, num_tokens: int) -> None:
        del self._token_ids[num_tokens:]

    def begin(self, token_ids: list[int], params: paged.SamplingParams) -> paged.Handle:
        self._token_ids += token_ids
        return self._llm.stream(self._token_ids, params)

    def end(self, completion: paged.Completion) -> None:
        self._token_ids += completion.token_ids

    def pause(self, tool: int) -> None:
        pass

    def fork(self) -> PlainDriver:
        return PlainDriver(self._llm, self._token_ids)

    def close(self) -> None:
        pass


Driver = SessionDriver | PlainDriver


class _Run:
    """Root agents on `num_slots` threads, spawned ones on threads of their own."""

    def __init__(self, llm: paged.LLM, agents: list[Agent], num_slots: int, driver: Callable[[paged.LLM], Driver]):
        self._llm = llm
        self._agents = agents
        self._num_slots = num_slots
        self._driver = driver
        self._roots = iter([i for i, agent in enumerate(agents) if agent.is_root])
        self._lock = threading.Lock()  # guards what follows
        self._outcome = Outcome()
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self._live_tokens = 0
        self._counted_at = time.perf_counter()

    def go(self) -> Outcome:
        before, start = self._llm.stats().num_prefill_tokens, time.perf_counter()
        self._counted_at = start
        for slot in range(self._num_slots):
            self._start(self._work, STAGGER * slot / self._num_slots)
        for thread in self._threads:  # grows while agents spawn others
            thread.join()
        if self._errors:
            raise self._errors[0]
        self._count(0)
        self._outcome.seconds = time.perf_counter() - start
        self._outcome.num_prefill_tokens = self._llm.stats().num_prefill_tokens - before
        return self._outcome

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        def guarded() -> None:
            try:
                target(*args)
            except BaseException as error:
                with self._lock:
                    self._errors.append(error)

        thread = threading.Thread(target=guarded, daemon=True)
        with self._lock:
            self._threads.append(thread)
        thread.start()

    def _work(self, delay: float) -> None:
        time.sleep(delay)
        while not self._errors:
            with self._lock:
                index = next(self._roots, None)
            if index is None:
                return
            self._run_agent(index, self._driver(self._llm), 0)

    def _run_agent(self, index: int, driver: Driver, length: int) -> None:
        agent, began = self._agents[index], time.perf_counter()
        shared = length if length else agent.num_prefix_tokens
        rng = random.Random(index)
        pending = [] if length else _prefix(agent)
        counted, due = 0, began
        for number, turn in enumerate(agent.turns):
            if 0 <= turn.keep < length:
                driver.rewind(turn.keep)
                length = turn.keep
            pending += [rng.randrange(VOCABULARY) for _ in range(turn.append)]
            length += len(pending) + turn.output
            driver.end(self._turn(driver.begin(pending, _params(turn.output)), due if number else None))
            pending = []
            counted += self._count(max(0, length - shared) - counted)
            if turn.spawn >= 0:
                self._start(self._run_agent, turn.spawn, driver.fork(), length)
            if number + 1 < len(agent.turns):
                driver.pause(turn.tool)
                due = time.perf_counter() + turn.gap
                time.sleep(turn.gap)
        driver.close()
        self._count(-counted)
        with self._lock:
            self._outcome.jobs.append(time.perf_counter() - began)

    def _turn(self, handle: paged.Handle, due: float | None) -> paged.Completion:
        next(iter(handle), None)
        first = time.perf_counter()
        completion = handle.result()
        if due is not None:
            with self._lock:
                self._outcome.resumes.append(first - due)
        return completion

    def _count(self, change: int) -> int:
        with self._lock:
            now = time.perf_counter()
            self._outcome.live_token_seconds += self._live_tokens * (now - self._counted_at)
            self._counted_at = now
            self._live_tokens += change
        return change


def _prefix(agent: Agent) -> list[int]:
    rng = random.Random(-1 - agent.prefix)
    return [rng.randrange(VOCABULARY) for _ in range(agent.num_prefix_tokens)]


def _params(num_tokens: int) -> paged.SamplingParams:
    return paged.SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)

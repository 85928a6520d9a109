# SPDX-License-Identifier: Apache-2.0
"""The proven limit of all schedules: below what any policy reaches, and exact where that can be worked out by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import agent_limits
import agent_workload
import bench_agents
from agent_workload import Agent, Shape, Turn

DEVICE = agent_limits.Device(0.0, 0.1, 1e-9, 1.0, 0.0, step_tokens=100)


def test_one_job_is_as_long_as_alone() -> None:
    agent = Agent(True, 0, 0, [Turn(-1, 20, 3, 7.0), Turn(-1, 4, 1, 0.0)])
    mean, makespan = agent_limits.least_times([agent], DEVICE, 1000, 1, 0.0)
    assert mean == makespan == pytest.approx(2.0 + 2 * 1.0 + 7.0 + 0.1 * 5)


def test_contexts_that_do_not_fit_are_kept_or_computed_again() -> None:
    """A job of 100 tokens that waits for 1000 s: at a low price they are kept, at a high one computed again."""
    agents = [Agent(True, 0, 0, [Turn(-1, 100, 1, 1000.0), Turn(-1, 1, 1, 0.0)]) for _ in range(2)]
    _, endless = agent_limits.least_times(agents, DEVICE, 10**9, 2, 0.0)
    assert endless == pytest.approx(1000 + 10 + 0.2)
    job = agent_limits.jobs_of(agents, DEVICE, 100)[0]
    assert agent_limits._weight(job, 0.0, DEVICE) == pytest.approx(10.2)  # nothing has a price
    assert agent_limits._weight(job, 1e-5, DEVICE) == pytest.approx(10.2 + 1e-5 * 100 * 1000)
    assert agent_limits._weight(job, 1.0, DEVICE) == pytest.approx(10.2 + 10.0, rel=1e-3)


@pytest.mark.parametrize("rho", [1.0, 2.0, 6.0])
@pytest.mark.parametrize("seed", range(3))
def test_no_policy_is_below_the_limit(rho: float, seed: int) -> None:
    case = bench_agents.Case("small", rho, Shape(num_agents=12, seed=seed, max_steps=20), 6)
    agents = agent_workload.generate(case.shape)
    endless = bench_agents.run(agents, bench_agents.ENGINES["lru"], 1_000_000, case)
    num_blocks = max(case.shape.max_tokens // 4 + 2, round(endless.mean_live_tokens / rho / 4))
    mean, makespan = agent_limits.least_times(agents, bench_agents.DEVICE, num_blocks * 4, 6, bench_agents.STAGGER)
    for name, engine in bench_agents.ENGINES.items():
        result = bench_agents.run(agents, engine, num_blocks, case)
        assert mean <= result.job_seconds.mean(), name
        assert makespan <= result.seconds, name
    mean, makespan = agent_limits.least_times(
        agents, bench_agents.DEVICE, num_blocks * 4, 6, bench_agents.STAGGER, below=num_blocks * 4
    )
    tiers = [num_blocks // 2] * 2
    for name in bench_agents.TIER_ENGINES:
        result = bench_agents.run(agents, bench_agents.ENGINES[name], num_blocks, case, *tiers)
        assert mean <= result.job_seconds.mean(), name
        assert makespan <= result.seconds, name
    jobs = agent_limits.jobs_of(agents, bench_agents.DEVICE, num_blocks * 4)
    ours = np.array([job.least_seconds for job in jobs])
    assert (ours <= endless.least_seconds * (1 + 1e-9)).all()
    num_prefixes = len({agent.prefix for agent in agents if agent.is_root})
    assert (
        ~np.isclose(ours, endless.least_seconds)
    ).sum() <= num_prefixes  # the first of each shared prompt computes it


def test_the_default_policy_keeps_its_promises() -> None:
    """At rho = 2, with and without guesses; and neutral where everything fits."""
    shape = Shape(num_agents=32, seed=1)
    agents = agent_workload.generate(shape)
    for rho, engines in ((0.2, ("hazard", "hazard_shuffled")), (2.0, ("hazard", "hazard_no_hints", "hazard_x10"))):
        case = bench_agents.Case("promises", rho, shape, 16)
        endless = bench_agents.run(agents, bench_agents.ENGINES["lru"], 1_000_000, case)
        num_blocks = round(endless.mean_live_tokens / rho / 4)
        lru = bench_agents.metrics(bench_agents.run(agents, bench_agents.ENGINES["lru"], num_blocks, case))
        for engine in engines:
            ours = bench_agents.metrics(bench_agents.run(agents, bench_agents.ENGINES[engine], num_blocks, case))
            jobs, resumes, slowdowns = (
                ours[m][0] / lru[m][0] for m in ("mean_job_time", "resume_ttft_p95", "worst_slowdown")
            )
            if rho < 1:
                assert jobs <= 1.02, (engine, jobs)
            else:
                assert jobs <= 0.5 and resumes <= 0.33 and slowdowns <= 1, (engine, jobs, resumes, slowdowns)


@pytest.mark.parametrize("engine", ["lru", "hazard_no_hints"])
def test_a_slow_disk_is_no_worse_than_none(engine: str) -> None:
    """Where reading a block takes longer than computing it nothing waits for that for long."""
    shape = Shape(num_agents=32, seed=1)
    agents = agent_workload.generate(shape)
    case = bench_agents.Case("slow", 2.0, shape, 16, disk_speed=bench_agents.SLOW_DISK)
    endless = bench_agents.run(agents, bench_agents.ENGINES["lru"], 1_000_000, case)
    num_blocks = round(endless.mean_live_tokens / case.rho / 4)
    none, slow = (
        bench_agents.run(agents, bench_agents.ENGINES[engine], num_blocks, case, 0, num_disk_blocks)
        for num_disk_blocks in (0, 8 * num_blocks)
    )
    assert slow.num_blocks_to_disk > 0
    assert slow.job_seconds.mean() <= 1.05 * none.job_seconds.mean()


def test_correlated_tools_are_slow_for_whole_agents() -> None:
    """Of agents' mean logarithms the spread grows; of all times it stays."""

    def spreads(correlation: float) -> tuple[float, float]:
        agents = agent_workload.generate(Shape(num_agents=300, seed=3, correlation=correlation))
        logs = [np.log([turn.gap for turn in agent.turns if turn.gap > 0]) for agent in agents if len(agent.turns) > 20]
        return float(np.std([each.mean() for each in logs])), float(np.mean([each.std() for each in logs]))

    (between, within), (between_correlated, within_correlated) = spreads(0.0), spreads(0.5)
    assert between < 0.6 and 1.3 < between_correlated < 2.0
    assert within_correlated < within

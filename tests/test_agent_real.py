# SPDX-License-Identifier: Apache-2.0
"""The agents' benchmark on the real engine, with a tiny model: every turn of every agent is run, and measured once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import paged

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import agent_real
import agent_workload
from agent_workload import Shape


@pytest.mark.parametrize("driver", [agent_real.PlainDriver, agent_real.SessionDriver])
def test_every_turn_is_run_and_measured(folder: Path, driver: type[agent_real.Driver]) -> None:
    shape = Shape(num_agents=6, seed=2, max_steps=6, fork_share=1.0, edit_share=0.3, constant_tool=0.01)
    agents = agent_real.shrunk(agent_workload.generate(shape), 40)
    assert any(not agent.is_root for agent in agents)
    turns = [turn for agent in agents for turn in agent.turns]
    with paged.LLM(folder, dtype="float32", num_threads=1, block_size=4, kv_cache_bytes=1 << 22) as llm:
        outcome = agent_real._Run(llm, agents, 3, driver).go()
        stats = llm.stats()
    assert len(outcome.jobs) == len(agents)
    assert len(outcome.resumes) == len(turns) - len(agents)
    assert stats.num_generated_tokens == sum(turn.output for turn in turns)
    assert outcome.num_prefill_tokens >= sum(turn.append for turn in turns)
    assert 0 < outcome.live_token_seconds < outcome.seconds * len(agents) * agent_workload.longest_context(agents)


def test_an_error_in_an_agent_is_raised(folder: Path) -> None:
    agents = agent_real.shrunk(agent_workload.generate(Shape(num_agents=2, max_steps=3)), 1)  # too long for the model
    with paged.LLM(folder, dtype="float32", num_threads=1, kv_cache_bytes=1 << 22) as llm, pytest.raises(ValueError):
        agent_real._Run(llm, agents, 2, agent_real.SessionDriver).go()

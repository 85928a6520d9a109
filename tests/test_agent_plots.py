# SPDX-License-Identifier: Apache-2.0
"""The pictures of the agents' benchmark: drawn of what there is, and the same for the same records."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import agent_plots
import bench_agents
from table import Record

pytest.importorskip("matplotlib", reason="pictures need matplotlib")
METRICS = {"mean_job_time": 3.0, "resume_ttft_p95": 2.0, "worst_slowdown": 5.0, "bytes_from_host": 7.0}


def records() -> list[Record]:
    return [
        Record("agents", case, engine, metric, value * (i + 1), "s")
        for case in ("rho=1", "rho=2", "rho=2,humans", "rho=2,host=1")
        for i, engine in enumerate(bench_agents.ENGINES)
        for metric, value in METRICS.items()
    ]


def test_the_same_records_give_the_same_pictures(tmp_path: Path) -> None:
    once, again = (agent_plots.draw(records(), tmp_path / name) for name in ("once", "again"))
    assert [path.name for path in once] == ["agents-sweep.svg", "agents-tiers.svg", "agents-cases.svg"]
    for first, second in zip(once, again, strict=True):
        assert first.read_bytes() == second.read_bytes()
        text = "".join(ElementTree.parse(first).getroot().itertext())
        assert "rho" in text and "20" + "2" not in text  # no date


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    assert agent_plots.draw([], tmp_path) == []


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text("".join(record.line() + "\n" for record in records()))
    assert bench_agents.read(str(path)) == records()

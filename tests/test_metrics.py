# SPDX-License-Identifier: Apache-2.0
"""What the engine tells of itself: counts against what was asked for, Prometheus text against its grammar, times."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import paged
from paged.metrics import StepTimes, prometheus_text
from step_gate import gated_llm
from test_llm_handle import eventually

GREEDY = paged.SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)


@pytest.fixture
def llm(folder: Path) -> Iterator[paged.LLM]:
    with paged.LLM(folder, dtype="float32", num_threads=1, kv_cache_bytes=2 * 3 * 2 * 16 * 4 * 16 * 40) as llm:
        yield llm


def test_counts_are_those_of_the_requests(llm: paged.LLM) -> None:
    assert llm.stats().num_steps == 0 and llm.stats().num_free_blocks == llm.stats().num_blocks == 40
    prompt = list(range(3, 36))
    llm.generate(prompt, GREEDY)
    first = llm.stats()
    assert (first.num_prefill_tokens, first.num_cached_tokens, first.num_generated_tokens) == (33, 0, 20)
    assert first.num_cached_blocks == 3  # 33 + 19 computed tokens: the last one is sampled and never computed
    llm.generate([prompt, prompt], GREEDY, use_tqdm=False)
    stats = llm.stats()
    assert (stats.num_prefill_tokens, stats.num_cached_tokens, stats.num_generated_tokens) == (35, 64, 60)
    assert (stats.num_waiting, stats.num_running, stats.num_finished, stats.num_failed) == (0, 0, 3, 0)
    assert stats.num_used_blocks == 0 and stats.num_free_blocks == 40
    assert sum(stats.step_times.counts) == stats.num_steps >= 40
    assert stats.step_times.total_seconds >= stats.last_step_seconds > 0
    assert stats.generated_tokens_per_second > 0


def test_queue_and_blocks_are_seen_while_requests_run(folder: Path) -> None:
    with gated_llm(folder, max_num_sequences=2) as (llm, gate):
        handles = [llm.submit([i] * 20, GREEDY) for i in range(5)]
        gate.allow(3)
        # The first step may begin before all are there.
        eventually(lambda: llm.stats().num_waiting == 3 and handles[1]._request.ready(until_finished=False))
        stats = llm.stats()
        assert (stats.num_running, stats.num_waiting) == (2, 3)
        assert stats.num_used_blocks == 4 == stats.num_blocks - stats.num_free_blocks
        handles[4].cancel()
        gate.open()
        assert [handle.result(60).finish_reason for handle in handles] == ["length"] * 4 + ["cancelled"]
        assert (llm.stats().num_finished, llm.stats().num_cancelled) == (5, 1)


def test_timings_of_a_request_are_in_order(folder: Path) -> None:
    with gated_llm(folder, max_num_sequences=1) as (llm, gate):
        handles = [llm.submit([1], GREEDY), llm.submit([2], GREEDY)]
        gate.open()
        first, second = (handle.result(60) for handle in handles)
    for timings in (first.timings, second.timings):
        assert timings.queued_seconds is not None and timings.first_token_seconds is not None
        assert 0 <= timings.queued_seconds <= timings.first_token_seconds <= (timings.total_seconds or 0)
        assert timings.token_seconds.shape == (20,) and (np.diff(timings.token_seconds) >= 0).all()
        assert timings.token_seconds[0] == np.float32(timings.first_token_seconds)
        assert timings.seconds_per_token == pytest.approx(np.diff(timings.token_seconds).mean(), rel=1e-3)
    assert second.timings.queued_seconds > first.timings.first_token_seconds  # it waited for the first to end


def test_prometheus_text_has_every_sample_once_and_a_cumulative_histogram(llm: paged.LLM) -> None:
    llm.generate([1, 2, 3], GREEDY)
    text = prometheus_text(llm, {"model": 'a "quoted"\\ name\n'})
    sample = re.compile(r'(paged_[a-z_]+)\{model="a \\"quoted\\"\\\\ name\\n"(?:,le="([^"]+)")?\} (\S+)')
    samples: dict[tuple[str, str], float] = {}
    helped: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# "):
            helped.add(line.split()[2])
            continue
        found = sample.fullmatch(line)
        assert found, line
        key = (found[1], found[2] or "")
        assert key not in samples
        samples[key] = float(found[3])
    assert {re.sub(r"(step_seconds)_(bucket|sum|count)", r"\1", name) for name, _ in samples} == helped
    buckets = [value for (name, _), value in samples.items() if name == "paged_step_seconds_bucket"]
    assert buckets == sorted(buckets) and buckets[-1] == samples["paged_step_seconds_count", ""]
    assert samples["paged_generated_tokens_total", ""] == 20
    assert text.endswith("\n") and "{" not in prometheus_text(llm).split("paged_step_seconds_bucket")[0]
    for name in ("le", "a-b", "", "1x", "__x"):
        with pytest.raises(ValueError, match="label"):
            prometheus_text(llm, {name: "x"})


def test_quantiles_of_step_times() -> None:
    times = StepTimes((0.1, 0.2), (5, 4, 1), 1.5)
    assert [times.quantile(share) for share in (0.5, 0.9, 1.0)] == [0.1, 0.2, float("inf")]
    assert StepTimes((0.1,), (0, 0), 0.0).quantile(0.5) == 0.0

# SPDX-License-Identifier: Apache-2.0
"""Agents and cache policies: the real scheduler, block manager and policies on a virtual clock, with a modelled device.

Closed loop: a fixed number of agents live at once, a tool's time begins when its turn has ended, the next agent begins
when one has ended. rho is the mean size of the live agents' own contexts with an endless cache over the pool's size.
Engines:
  vllm_like          LRU, each turn a plain request
  lru                LRU, sessions
  lru_queue          and turns queue as under the default policy: what the order of the queue brings
  lru_session_order  and wait for room, which every session that lives holds: what admission brings
  ttl                LRU, but nothing goes for 2 s after a turn
  hazard             the default policy with true guesses; _no_hints: it knows only which tool runs; _blind: not even
                     that, nor that it waits; _x10, _div10, _shuffled: wrong guesses
  clairvoyant        the default policy that knows when each tool returns
  endless            LRU with a pool in which all fits: what a larger pool, or tiers below it, can bring
  bound              no policy: a proven limit of all (agent_limits.py)
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import agent_limits
import agent_workload
import table
from agent_limits import Device
from agent_workload import SCALE, Agent, Shape
from paged import _C
from table import Record

BLOCK_SIZE = 4  # tokens, scaled
TTL_SECONDS = 2.0


@dataclass(frozen=True)
class Engine:
    policy: str
    guesses: str = "none"
    uses_sessions: bool = True
    tells_tools: bool = True


ENGINES = {
    "vllm_like": Engine("lru", uses_sessions=False),
    "lru": Engine("lru"),
    "lru_queue": Engine("session_order"),
    "lru_session_order": Engine("admission"),
    "ttl": Engine("ttl"),
    "hazard": Engine("hazard", "true"),
    "hazard_no_hints": Engine("hazard"),
    "hazard_blind": Engine("hazard", tells_tools=False),
    "hazard_x10": Engine("hazard", "x10"),
    "hazard_div10": Engine("hazard", "div10"),
    "hazard_shuffled": Engine("hazard", "shuffled"),
    "clairvoyant": Engine("clairvoyant", "true"),
}
TIER_ENGINES = ["lru", "hazard", "hazard_no_hints", "hazard_shuffled", "clairvoyant"]
QUICK_ENGINES = ["lru", "lru_session_order", "ttl", "hazard", "hazard_no_hints", "hazard_shuffled", "clairvoyant"]
QUICK_CASES = ["rho=0.8", "rho=2", "rho=2,constant_1s_tools", "rho=2,host=1", "rho=2,host=0.5,disk=4"]
STAGGER = 60.0  # seconds over which the first agents begin
# An 8B model on an H100, about: 20,000 prompt tokens a second, 1.3 ns for a pair of them, 5 ms to read the weights,
# 3 TB/s for 128 KiB of context a token. A scaled token stands for SCALE, so each decode step stands for as many.
DEVICE = Device(
    base=0.005,
    per_token=50e-6 * SCALE,
    per_token_pair=1.3e-9 * SCALE**2,
    decode_base=0.005 * (SCALE - 1),
    per_decoded_context_token=43e-9 * SCALE**2,
    step_tokens=4096 // SCALE,
)
BYTES_PER_TOKEN = 131_072 * SCALE
# A host's memory behind a PCIe 5.0 x16 link that both directions share.
LINK = 50e9
SLOW_LINK = 5e9  # as if eight devices shared it, or memory was copied by the CPU
LINK_LATENCY = 20e-6
# Bytes a second, read and written: a solid state drive on PCIe 4.0, and a network's or an old one.
DISK = (6e9, 3e9)
SLOW_DISK = (0.5e9, 0.5e9)
DISK_LATENCY = 100e-6


@dataclass(frozen=True)
class Case:
    name: str
    rho: float
    shape: Shape
    num_slots: int
    host: float = 0.0  # the tiers' sizes, of the live contexts'
    disk: float = 0.0
    link: float = LINK  # bytes a second
    disk_speed: tuple[float, float] = DISK
    burst_every: float = 0.0  # seconds; see ReplayConfig


def cases(quick: bool) -> list[Case]:
    """All of them; `quick`: half as many agents."""
    slots, agents = (32, 64) if quick else (64, 192)
    shape = Shape(num_agents=agents)
    result = [Case(f"rho={rho:g}", rho, shape, slots) for rho in (0.8, 1.0, 1.5, 2.0, 4.0, 8.0)]
    result += [
        Case("rho=2,constant_1s_tools", 2.0, replace(shape, constant_tool=1.0), slots),
        Case("rho=2,correlated_tools", 2.0, replace(shape, correlation=0.5), slots),
        Case("rho=2,bursts", 2.0, shape, slots, burst_every=60.0),
        *(Case(f"rho=2,host={host:g}", 2.0, shape, slots, host=host) for host in (0.5, 1.0, 4.0)),
        Case("rho=2,host=1,slow_link", 2.0, shape, slots, host=1.0, link=SLOW_LINK),
        Case("rho=8,host=1", 8.0, shape, slots, host=1.0),
        Case("rho=2,disk=4", 2.0, shape, slots, disk=4.0),
        Case("rho=2,disk=4,slow_disk", 2.0, shape, slots, disk=4.0, disk_speed=SLOW_DISK),
        Case("rho=2,host=0.5,disk=4", 2.0, shape, slots, host=0.5, disk=4.0),
        Case("rho=2,host=0.5,disk=4,slow_disk", 2.0, shape, slots, host=0.5, disk=4.0, disk_speed=SLOW_DISK),
        Case("rho=8,host=1,disk=4", 8.0, shape, slots, host=1.0, disk=4.0),
        Case("rho=0.25,8_agents", 0.25, replace(shape, num_agents=32), 8),
        Case("rho=0.5,16_agents", 0.5, replace(shape, num_agents=48), 16),
        Case("rho=2,16_agents", 2.0, replace(shape, num_agents=48), 16),
        Case("rho=2,24_agents", 2.0, replace(shape, num_agents=72), 24),
        Case("rho=2,humans", 2.0, replace(shape, human_share=0.11), slots),
    ]
    if not quick:
        result.append(Case("rho=2,256_agents", 2.0, replace(shape, num_agents=512, max_steps=60), 256))
    return result


def run(
    agents: list[Agent], engine: Engine, num_blocks: int, case: Case, num_host_blocks: int = 0, num_disk_blocks: int = 0
) -> _C.ReplayResult:
    told = agent_workload.with_guesses(agents, engine.guesses)
    config = _C.ReplayConfig()
    config.num_blocks, config.block_size = num_blocks, BLOCK_SIZE
    config.max_num_batched_tokens = DEVICE.step_tokens
    config.max_model_len = case.shape.max_tokens + 8
    config.num_slots, config.stagger = case.num_slots, STAGGER
    config.uses_sessions, config.tells_tools = engine.uses_sessions, engine.tells_tools
    config.set_device(
        base=DEVICE.base,
        per_token=DEVICE.per_token,
        per_token_pair=DEVICE.per_token_pair,
        decode_base=DEVICE.decode_base,
        per_decoded_context_token=DEVICE.per_decoded_context_token,
    )
    config.burst_every = case.burst_every
    config.num_host_blocks, config.num_disk_blocks = num_host_blocks, num_disk_blocks
    block_bytes = BLOCK_SIZE * BYTES_PER_TOKEN
    config.set_link(per_transfer=LINK_LATENCY, per_block=block_bytes / case.link)
    read, written = (block_bytes / speed for speed in case.disk_speed)
    config.set_disk(per_transfer=DISK_LATENCY, per_block_read=read, per_block_written=written)
    shapes = [[a.is_root, a.prefix, a.num_prefix_tokens, len(a.turns)] for a in told]
    turns = [[t.keep, t.append, t.output, t.gap, t.guess, t.tool, t.spawn] for a in told for t in a.turns]
    return _C.replay(
        agents=np.array(shapes, dtype=np.int64),
        turns=np.array(turns, dtype=np.float64),
        config=config,
        policy=engine.policy,
        ttl_seconds=TTL_SECONDS,
    )


def metrics(result: _C.ReplayResult) -> dict[str, tuple[float, str]]:
    jobs, resumes = result.job_seconds, result.resume_seconds
    block_bytes = BLOCK_SIZE * BYTES_PER_TOKEN
    return {
        "mean_job_time": (float(jobs.mean()), "s"),
        "job_time_p50": (float(np.percentile(jobs, 50)), "s"),
        "job_time_p95": (float(np.percentile(jobs, 95)), "s"),
        "job_time_p99": (float(np.percentile(jobs, 99)), "s"),
        "resume_ttft_p50": (float(np.percentile(resumes, 50)), "s"),
        "resume_ttft_p95": (float(np.percentile(resumes, 95)), "s"),
        "prefill_amplification": (result.num_prefill_tokens / result.num_new_tokens, "x"),
        "evicted_while_expected": (result.num_evicted_tokens * SCALE / 1e6, "Mtok"),
        "evicted_when_expired": (result.num_expired_tokens * SCALE / 1e6, "Mtok"),
        "slowdown_p95": (float(np.percentile(jobs / result.least_seconds, 95)), "x"),
        "worst_slowdown": (float((jobs / result.least_seconds).max()), "x"),
        "bytes_to_host": (result.num_stored_blocks * block_bytes / 1e9, "GB"),
        "bytes_from_host": (result.num_loaded_blocks * block_bytes / 1e9, "GB"),
        "bytes_to_disk": (result.num_blocks_to_disk * block_bytes / 1e9, "GB"),
        "bytes_from_disk": (result.num_blocks_from_disk * block_bytes / 1e9, "GB"),
        "link_utilization": (result.link_busy_seconds / result.seconds, "share"),
        "disk_utilization": (result.disk_busy_seconds / result.seconds, "share"),
        "makespan": (result.seconds, "s"),
        "utilization": (result.busy_seconds / result.seconds, "share"),
    }


Samples = dict[str, dict[str, list[float]]]  # engine, metric: a value for each seed


def measure(case: Case, engines: list[str], seeds: int) -> Iterator[Record]:
    """Every engine's metrics, means over the seeds; `ratio` against LRU, or of the gap closed."""
    samples: Samples = {}
    units: dict[str, str] = {}
    for seed in range(seeds):
        for name, metric, value, unit in _values_of_seed(case, engines, seed):
            samples.setdefault(name, {}).setdefault(metric, []).append(value)
            units[metric] = unit
    for name, values in samples.items():
        for metric, each in values.items():
            lru = samples.get("lru", {}).get(metric)
            is_time = units[metric] in ("s", "x") and lru
            mean = statistics.fmean(each)
            ratio = statistics.fmean(lru) / mean if is_time and lru and mean else None
            yield Record("agents", case.name, name, metric, mean, units[metric], "lru" if ratio else None, ratio)
    yield from _shares(case, samples)
    yield from _gaps(case, samples)


def _values_of_seed(case: Case, engines: list[str], seed: int) -> Iterator[tuple[str, str, float, str]]:
    agents = agent_workload.generate(replace(case.shape, seed=seed))
    endless = run(agents, ENGINES["lru"], 4_000_000 // BLOCK_SIZE, case)
    largest = case.shape.max_tokens // BLOCK_SIZE + 2
    num_blocks = max(largest, round(endless.mean_live_tokens / case.rho / BLOCK_SIZE))
    tiers = [round(endless.mean_live_tokens * size / BLOCK_SIZE) for size in (case.host, case.disk)]
    for name in engines:
        result = run(agents, ENGINES[name], num_blocks, case, *tiers)
        yield from ((name, metric, value, unit) for metric, (value, unit) in metrics(result).items())
    yield from (("endless", metric, value, unit) for metric, (value, unit) in metrics(endless).items())
    pool, below = num_blocks * BLOCK_SIZE, sum(tiers) * BLOCK_SIZE
    limits = agent_limits.least_times(agents, DEVICE, pool, case.num_slots, STAGGER, below)
    yield from (("bound", m, value, "s") for m, value in zip(("mean_job_time", "makespan"), limits, strict=True))


def _shares(case: Case, samples: Samples) -> Iterator[Record]:
    """Of LRU's, trace by trace: the mean, the least and the most."""
    for metric in ("mean_job_time", "resume_ttft_p95", "worst_slowdown"):
        for engine, values in samples.items():
            if engine == "lru" or "lru" not in samples or metric not in values:
                continue
            shares = [value / lru for value, lru in zip(values[metric], samples["lru"][metric], strict=True)]
            for name, value in (("", statistics.fmean(shares)), ("_min", min(shares)), ("_max", max(shares))):
                yield Record("agents", case.name, engine, f"{metric}_of_lru{name}", value, "share")


def _gaps(case: Case, samples: Samples) -> Iterator[Record]:
    """The share of the distance between LRU and a limit that an engine closes, trace by trace: the mean and the least,
    over the traces in which there is one."""
    for limit, metric, name in (
        ("clairvoyant", "mean_job_time", "gap_closed"),
        ("bound", "mean_job_time", "bound_gap_closed"),
        ("bound", "makespan", "bound_makespan_gap_closed"),
    ):
        if "lru" not in samples or limit not in samples:
            continue
        lru, best = (samples[engine][metric] for engine in ("lru", limit))
        for engine, values in samples.items():
            trios = zip(lru, best, values[metric], strict=True)
            closed = [(most - value) / (most - least) for most, least, value in trios if most > least]
            if engine not in ("lru", "bound", "endless") and closed:
                mean = statistics.fmean(closed)
                yield Record("agents", case.name, engine, name, mean, "share", limit, mean)
                yield Record("agents", case.name, engine, f"{name}_min", min(closed), "share", limit, min(closed))


def text_table(records: list[Record]) -> str:
    shown = ("mean_job_time", "job_time_p95", "resume_ttft_p50", "resume_ttft_p95", "prefill_amplification",
             "worst_slowdown", "bytes_to_host", "bytes_from_host", "bytes_to_disk", "bytes_from_disk",
             "mean_job_time_of_lru_max",
             "resume_ttft_p95_of_lru_max",
             "gap_closed", "bound_gap_closed")  # fmt: skip
    values = {(r.case, r.engine, r.metric): r.value for r in records}
    pairs = list(dict.fromkeys((r.case, r.engine) for r in records))
    rows = [[case, engine, *(table.number(values.get((case, engine, m))) for m in shown)] for case, engine in pairs]
    return table.markdown(["case", "engine", *shown], rows)


def run_real(arguments: argparse.Namespace) -> None:
    import agent_real
    import gpu_engine
    import paged

    if arguments.device == "cpu":
        case = agent_real.cpu_case(arguments.quick)
        found = agent_real.measure(case, lambda options: paged.LLM(arguments.model, dtype="bfloat16", **options))
    else:
        case = agent_real.gpu_case(arguments.quick)
        options = {"enable_prefix_caching": True}
        found = agent_real.measure(case, lambda given: gpu_engine.engine(arguments.device, "8B", {**options, **given}))
    records = []
    for record in found:
        print(record.line(), flush=True)  # what was measured stays, whatever happens next
        records.append(record)
    table.emit(records, table.record_table(records), arguments.json)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="half as many agents, one trace, a few cases: within half a minute"
    )
    parser.add_argument("--seeds", type=int, help="traces to average over; default 5, with --quick 1")
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="by name; default all, with --quick four")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, help="default all, with --quick seven of them")
    parser.add_argument("--real", action="store_true", help="the real engine, with --model or on a GPU, instead")
    parser.add_argument("--model", metavar="FOLDER", help="with --real: SmolLM2-135M")
    parser.add_argument("--device", default="cpu", help="with --real: cpu, or a GPU such as cuda (8B, random weights)")
    parser.add_argument("--plot", metavar="FOLDER", help="draw the records there as SVG; needs paged[plots]")
    parser.add_argument("--records", metavar="FILE", help="what --json wrote, instead of running anything")
    table.add_json_option(parser)
    arguments = parser.parse_args()
    if arguments.real:
        run_real(arguments)
        return
    records = read(arguments.records) if arguments.records else list(_measured(arguments))
    table.emit(records, text_table(records), arguments.json)
    if arguments.plot:
        import agent_plots

        agent_plots.draw(records, Path(arguments.plot))


def read(path: str) -> list[Record]:
    return [Record(**json.loads(line)) for line in Path(path).read_text().splitlines()]


def _measured(arguments: argparse.Namespace) -> Iterator[Record]:
    engines = arguments.engines or (QUICK_ENGINES if arguments.quick else list(ENGINES))
    names = arguments.cases or (QUICK_CASES if arguments.quick else None)
    for case in cases(arguments.quick):
        if names is None or case.name in names:
            has_tiers = case.host + case.disk > 0
            chosen = [name for name in engines if arguments.engines or not has_tiers or name in TIER_ENGINES]
            yield from measure(case, chosen, arguments.seeds or (1 if arguments.quick else 5))


if __name__ == "__main__":
    main()

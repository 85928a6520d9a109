# SPDX-License-Identifier: Apache-2.0
"""What an engine is doing, as a snapshot and as Prometheus text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paged import _C
    from paged.llm import LLM


@dataclass(frozen=True)
class StepTimes:
    """Steps by duration.

    Attributes:
        bounds: seconds, ascending.
        counts: [len(bounds) + 1] steps up to each bound and above the one before it; the last has the rest.
        total_seconds: of all steps together: the time the engine was not idle.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total_seconds: float

    def quantile(self, share: float) -> float:
        """A bound that at least `share` of the steps kept: 0.0 before the first step, infinite past the last bound."""
        wanted, seen = share * sum(self.counts), 0
        if wanted == 0:
            return 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            seen += count
            if seen >= wanted:
                return bound
        return float("inf")


@dataclass(frozen=True)
class Stats:
    """An engine after its last step. Counters count from its start.

    Attributes:
        num_waiting, num_running: requests in the queue, and in the batch.
        num_finished: requests that ended in any way; num_failed and num_cancelled of them did so.
        num_blocks: of the KV pool: num_used_blocks belong to running requests, num_free_blocks to nobody.
        num_cached_blocks: of all blocks, used or free, those that later prompts may reuse.
        num_host_blocks: of the host's tier (`host_cache`); num_host_cached_blocks of them hold a copy.
        num_bytes_stored, num_bytes_loaded: copied to the host, and from there to the device.
        num_disk_blocks, num_disk_cached_blocks, num_disk_bytes_stored, num_disk_bytes_loaded: the same of the disk's
            tier (`disk_cache`).
        num_disk_errors: times that the disk could not be written, which ends its taking more, or that a block read from
            it was not what had been written; what was there is computed again.
        num_cached_tokens: prompt tokens that the prefix cache served.
        num_prefill_tokens: tokens of prompts (and of preempted requests) that were computed.
        num_generated_tokens: tokens that requests got.
        generated_tokens_per_second, prefill_tokens_per_second: over about the last second.
        num_preemptions: times that a request lost its blocks to a more urgent one.
        policy: of the cache, with what decides where it fails or is late.
        num_late_proposals, num_failed_proposals: of a `Policy` of your own: the fallback decided instead.
    """

    num_waiting: int
    num_running: int
    num_finished: int
    num_failed: int
    num_cancelled: int
    num_blocks: int
    num_used_blocks: int
    num_free_blocks: int
    num_cached_blocks: int
    num_host_blocks: int
    num_host_cached_blocks: int
    num_bytes_stored: int
    num_bytes_loaded: int
    num_disk_blocks: int
    num_disk_cached_blocks: int
    num_disk_bytes_stored: int
    num_disk_bytes_loaded: int
    num_disk_errors: int
    num_cached_tokens: int
    num_prefill_tokens: int
    num_generated_tokens: int
    generated_tokens_per_second: float
    prefill_tokens_per_second: float
    num_preemptions: int
    num_steps: int
    last_step_seconds: float
    step_times: StepTimes
    policy: str
    num_late_proposals: int
    num_failed_proposals: int


def snapshot(stats: _C.EngineStats, policy: str) -> Stats:
    return Stats(
        num_waiting=stats.num_waiting,
        num_running=stats.num_running,
        num_finished=stats.num_finished,
        num_failed=stats.num_failed,
        num_cancelled=stats.num_cancelled,
        num_blocks=stats.num_blocks,
        num_used_blocks=stats.num_blocks - stats.num_free_blocks,
        num_free_blocks=stats.num_free_blocks,
        num_cached_blocks=stats.num_cached_blocks,
        num_host_blocks=stats.num_host_blocks,
        num_host_cached_blocks=stats.num_host_cached_blocks,
        num_bytes_stored=stats.num_bytes_stored,
        num_bytes_loaded=stats.num_bytes_loaded,
        num_disk_blocks=stats.num_disk_blocks,
        num_disk_cached_blocks=stats.num_disk_cached_blocks,
        num_disk_bytes_stored=stats.num_disk_bytes_stored,
        num_disk_bytes_loaded=stats.num_disk_bytes_loaded,
        num_disk_errors=stats.num_disk_errors,
        num_cached_tokens=stats.num_cached_tokens,
        num_prefill_tokens=stats.num_prefill_tokens,
        num_generated_tokens=stats.num_generated_tokens,
        generated_tokens_per_second=stats.generated_tokens_per_second,
        prefill_tokens_per_second=stats.prefill_tokens_per_second,
        num_preemptions=stats.num_preemptions,
        num_steps=stats.num_steps,
        last_step_seconds=stats.last_step_seconds,
        step_times=StepTimes(tuple(stats.step_bounds), tuple(stats.step_counts), stats.step_seconds),
        policy=policy,
        num_late_proposals=stats.num_late_proposals,
        num_failed_proposals=stats.num_failed_proposals,
    )


# name, kind, help, field of Stats
_SERIES = (
    ("requests_waiting", "gauge", "Requests in the queue.", "num_waiting"),
    ("requests_running", "gauge", "Requests in the batch.", "num_running"),
    ("requests_finished_total", "counter", "Requests that ended in any way.", "num_finished"),
    ("requests_failed_total", "counter", "Requests that ended with an error.", "num_failed"),
    ("requests_cancelled_total", "counter", "Requests that were cancelled.", "num_cancelled"),
    ("kv_blocks", "gauge", "Blocks of the KV pool.", "num_blocks"),
    ("kv_blocks_used", "gauge", "Blocks of running requests.", "num_used_blocks"),
    ("kv_blocks_free", "gauge", "Blocks of nobody.", "num_free_blocks"),
    ("kv_blocks_cached", "gauge", "Blocks that later prompts may reuse, used or free.", "num_cached_blocks"),
    ("host_blocks", "gauge", "Slots of the host's tier.", "num_host_blocks"),
    ("host_blocks_cached", "gauge", "Slots of the host's tier that hold a copy.", "num_host_cached_blocks"),
    ("host_bytes_stored_total", "counter", "Bytes copied to the host's tier.", "num_bytes_stored"),
    ("host_bytes_loaded_total", "counter", "Bytes copied back from it.", "num_bytes_loaded"),
    ("disk_blocks", "gauge", "Slots of the disk's tier.", "num_disk_blocks"),
    ("disk_blocks_cached", "gauge", "Slots of the disk's tier that hold a copy.", "num_disk_cached_blocks"),
    ("disk_bytes_stored_total", "counter", "Bytes copied to the disk's tier.", "num_disk_bytes_stored"),
    ("disk_bytes_loaded_total", "counter", "Bytes copied back from it.", "num_disk_bytes_loaded"),
    ("disk_errors_total", "counter", "Times that the disk's tier failed.", "num_disk_errors"),
    ("prompt_tokens_cached_total", "counter", "Prompt tokens that the prefix cache served.", "num_cached_tokens"),
    ("prefill_tokens_total", "counter", "Prompt tokens that were computed.", "num_prefill_tokens"),
    ("generated_tokens_total", "counter", "Tokens that requests got.", "num_generated_tokens"),
    ("preemptions_total", "counter", "Requests that lost their blocks to more urgent ones.", "num_preemptions"),
    ("policy_late_total", "counter", "Proposals of the cache policy that came too late.", "num_late_proposals"),
    ("policy_failed_total", "counter", "Questions in which the cache policy failed.", "num_failed_proposals"),
)


def prometheus_text(llm: LLM, labels: dict[str, str] | None = None) -> str:
    """The engine's metrics in Prometheus' text format, for a handler of your own to return.

    Args:
        labels: of every sample, such as {"model": "smollm2"}: names of letters, digits and "_"; any values.

    Raises:
        ValueError: a name of a label that Prometheus does not allow.
        EngineClosedError: the engine was never made.
    """
    return "\n".join(_lines(llm.stats(), _labels(labels or {}))) + "\n"


def _lines(stats: Stats, labels: list[str]) -> Iterator[str]:
    shown = f"{{{','.join(labels)}}}" if labels else ""
    for name, kind, text, field in _SERIES:
        yield f"# HELP paged_{name} {text}"
        yield f"# TYPE paged_{name} {kind}"
        yield f"paged_{name}{shown} {getattr(stats, field)}"
    yield "# HELP paged_step_seconds Duration of the engine's steps."
    yield "# TYPE paged_step_seconds histogram"
    times, seen = stats.step_times, 0
    for bound, count in zip([*map(repr, times.bounds), "+Inf"], times.counts, strict=True):
        seen += count
        bucket = ",".join([*labels, f'le="{bound}"'])
        yield f"paged_step_seconds_bucket{{{bucket}}} {seen}"
    yield f"paged_step_seconds_sum{shown} {times.total_seconds!r}"
    yield f"paged_step_seconds_count{shown} {seen}"


def _labels(labels: dict[str, str]) -> list[str]:
    for name in labels:
        if not (name.isascii() and name.isidentifier() and not name.startswith("__") and name != "le"):
            raise ValueError(f"a label's name is made of letters, digits and '_', and is not 'le', got {name!r}")
    escapes = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    return [f'{name}="{str(value).translate(escapes)}"' for name, value in labels.items()]

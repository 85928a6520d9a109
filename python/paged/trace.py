# SPDX-License-Identifier: Apache-2.0
"""What an engine did when: recorded by `LLM.start_trace`, for Perfetto or as a page of one's own (`paged trace`)."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from paged import _C

_REASONS = ("stop", "length", "cancelled", "error")
_ENGINE, _REQUESTS = 1, 2  # Perfetto's processes


@dataclass(frozen=True)
class StepRecord:
    """One step; seconds since the trace began. On a GPU a step begins when the one before it has ended."""

    launched: float
    finished: float
    num_prefill_tokens: int
    num_decode_tokens: int
    num_sequences: int
    num_waiting: int
    num_free_blocks: int


@dataclass(frozen=True)
class RequestRecord:
    """A request that has ended; seconds since the trace began, negative for what happened before or never did."""

    id: int
    submitted: float
    scheduled: float
    first_token: float
    finished: float
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    finish_reason: str


@dataclass(frozen=True)
class Trace:
    """The last steps and the last requests, oldest first, and how many older ones found no room."""

    steps: list[StepRecord]
    requests: list[RequestRecord]
    num_dropped_steps: int = 0
    num_dropped_requests: int = 0

    def save(self, path: str | Path) -> None:
        """Writes the JSON that Perfetto (ui.perfetto.dev), chrome://tracing and `paged trace` open."""
        content = {
            "displayTimeUnit": "ms",
            "otherData": {"dropped_steps": self.num_dropped_steps, "dropped_requests": self.num_dropped_requests},
            "traceEvents": list(_events(self)),
        }
        Path(path).write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")

    def html(self, title: str = "paged") -> str:
        """A page that shows it, with nothing to fetch from elsewhere."""
        data = {
            "steps": [list(asdict(step).values()) for step in self.steps],
            "requests": [list(asdict(request).values()) for request in self.requests],
            "dropped": [self.num_dropped_steps, self.num_dropped_requests],
        }
        page = files("paged").joinpath("trace_page.html").read_text(encoding="utf-8")
        script = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
        return page.replace("@TITLE@", html.escape(title)).replace("@DATA@", script)


def load(path: str | Path) -> Trace:
    """What `Trace.save` wrote. Raises ValueError if the file is something else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        events, other = content["traceEvents"], content["otherData"]
        steps = [_record(StepRecord, event["args"]) for event in events if event.get("cat") == "step"]
        requests = [_record(RequestRecord, event["args"]) for event in events if event.get("cat") == "request"]
        return Trace(steps, requests, int(other["dropped_steps"]), int(other["dropped_requests"]))
    except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is not a trace that paged wrote: {type(error).__name__}: {error}") from error


def from_native(trace: _C.Trace) -> Trace:
    return Trace(
        [StepRecord(*record) for record in trace.steps],
        [RequestRecord(*record) for record in trace.requests],
        trace.num_dropped_steps,
        trace.num_dropped_requests,
    )


_Record = TypeVar("_Record", StepRecord, RequestRecord)


def _record(kind: type[_Record], values: dict[str, Any]) -> _Record:
    found = {}
    for field in fields(kind):
        value = values[field.name]
        if field.name == "finish_reason":
            if value not in _REASONS:
                raise ValueError(f"finish_reason {value!r}")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
            raise ValueError(f"{field.name} is {value!r}")
        found[field.name] = value
    return kind(**found)


def _events(trace: Trace) -> Iterator[dict[str, Any]]:
    for process, name in ((_ENGINE, "engine"), (_REQUESTS, "requests")):
        yield {"ph": "M", "name": "process_name", "pid": process, "args": {"name": name}}
    yield {"ph": "M", "name": "thread_name", "pid": _ENGINE, "tid": 1, "args": {"name": "steps"}}
    for step in trace.steps:
        name = "mixed" if step.num_prefill_tokens and step.num_decode_tokens else "decode"
        if not step.num_decode_tokens:
            name = "prefill"
        yield _slice(name, "step", _ENGINE, 1, (step.launched, step.finished), asdict(step))
        counters = {
            "tokens": {"prefill": step.num_prefill_tokens, "decode": step.num_decode_tokens},
            "waiting": {"requests": step.num_waiting},
            "free blocks": {"blocks": step.num_free_blocks},
        }
        for counter, values in counters.items():
            yield {"ph": "C", "name": counter, "pid": _ENGINE, "ts": _micro(step.launched), "args": values}
    for lane, request in _lanes(trace.requests):
        yield from _request_events(lane, request)


def _request_events(lane: int, request: RequestRecord) -> Iterator[dict[str, Any]]:
    whole = (request.submitted, request.finished)
    yield _slice(f"request {request.id}", "request", _REQUESTS, lane, whole, asdict(request))
    ends = [request.submitted, request.scheduled, request.first_token, request.finished]
    for index, name in enumerate(("queued", "prefill", "decode")):
        begin = ends[index]
        end = next((end for end in ends[index + 1 :] if end >= begin), begin)
        if begin >= request.submitted and end > begin:
            yield _slice(name, "phase", _REQUESTS, lane, (begin, end), {})


def _lanes(requests: Iterable[RequestRecord]) -> Iterator[tuple[int, RequestRecord]]:
    """Each request with the first lane that is free when it comes, so that none overlap."""
    import heapq

    free: list[int] = []
    busy: list[tuple[float, int]] = []  # until when, lane
    for request in sorted(requests, key=lambda request: request.submitted):
        while busy and busy[0][0] <= request.submitted:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy) + 1
        heapq.heappush(busy, (request.finished, lane))
        yield lane, request


def _slice(
    name: str, category: str, process: int, thread: int, span: tuple[float, float], values: dict[str, Any]
) -> dict[str, Any]:
    begin, end = _micro(span[0]), _micro(span[1])
    return {
        "ph": "X", "name": name, "cat": category, "pid": process, "tid": thread, "ts": begin, "dur": end - begin,
        "args": values,
    }  # fmt: skip


def _micro(seconds: float) -> float:
    return round(seconds * 1e6, 3)

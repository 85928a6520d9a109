# SPDX-License-Identifier: Apache-2.0
"""A trace is what happened; Perfetto's JSON keeps it; the page shows it in a real browser and fetches nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import paged
from paged.cli import main
from paged.trace import RequestRecord, StepRecord, Trace, load
from tiny_models import tiny_model

GREEDY = paged.SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[paged.LLM]:
    folder = tiny_model("llama").save(tmp_path_factory.mktemp("llama"))
    options = {"max_num_batched_tokens": 32, "max_num_sequences": 4, "enable_prefix_caching": False}
    with paged.LLM(folder, dtype="float32", num_threads=1, **options) as llm:
        yield llm


@pytest.fixture(scope="module")
def trace(llm: paged.LLM) -> Trace:
    llm.start_trace()
    llm.generate([[5 + i] * (10 + 10 * i) for i in range(6)], GREEDY, use_tqdm=False)
    return llm.stop_trace()


def test_records_are_what_was_computed(trace: Trace) -> None:
    assert sum(step.num_prefill_tokens for step in trace.steps) == 10 + 20 + 30 + 40 + 50 + 60
    assert sum(step.num_decode_tokens for step in trace.steps) == 6 * 19
    assert max(step.num_prefill_tokens + step.num_decode_tokens for step in trace.steps) <= 32
    assert max(step.num_waiting for step in trace.steps) >= 2
    for earlier, later in zip(trace.steps, trace.steps[1:], strict=False):
        assert 0 <= earlier.launched <= earlier.finished <= later.launched
    assert sorted((r.num_prompt_tokens, r.num_generated_tokens) for r in trace.requests) == [
        (10 * i, 20) for i in range(1, 7)
    ]
    for request in trace.requests:
        assert 0 <= request.submitted <= request.scheduled <= request.first_token <= request.finished
        assert request.finish_reason == "length"


def test_off_unless_asked_and_bounded(llm: paged.LLM) -> None:
    llm.start_trace(max_steps=8)
    llm.generate([1], GREEDY)
    bounded = llm.stop_trace()
    assert len(bounded.steps) == 8 and bounded.num_dropped_steps == 12
    assert [step.launched for step in bounded.steps] == sorted(step.launched for step in bounded.steps)
    llm.generate([1], GREEDY)
    assert llm.stop_trace().steps == bounded.steps  # nothing was added after the stop
    for bad in (0, -1, 2**25, 1.5, True):
        with pytest.raises(ValueError, match="max_steps"):
            llm.start_trace(max_steps=bad)  # type: ignore[arg-type]


def test_requests_that_close_ends_are_recorded(tmp_path: Path) -> None:
    """Those that run, those that wait, and those that are in no queue yet."""
    folder = tiny_model("llama").save(tmp_path)
    with paged.LLM(folder, dtype="float32", num_threads=1, max_num_sequences=2) as llm:
        llm.start_trace()
        params = paged.SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
        handles = [llm.submit([5 + i], params) for i in range(12)]
        next(handles[0])
    reasons = {handle.id: handle.result().finish_reason for handle in handles}
    trace = llm.stop_trace()
    assert {request.id: request.finish_reason for request in trace.requests} == reasons
    assert len(trace.requests) == 12 and "cancelled" in reasons.values()
    for request in trace.requests:
        assert 0 <= request.submitted <= request.finished
        assert request.num_generated_tokens == len(handles[request.id - handles[0].id].result().token_ids)


def test_perfetto_file_is_well_formed_and_loads_back(trace: Trace, tmp_path: Path) -> None:
    trace.save(tmp_path / "trace.json")
    content = json.loads((tmp_path / "trace.json").read_text())
    slices = [event for event in content["traceEvents"] if event["ph"] == "X"]
    assert all(event["dur"] >= 0 and {"name", "pid", "tid", "ts"} <= event.keys() for event in slices)
    for lane in {(event["pid"], event["tid"]) for event in slices}:  # slices of a lane nest or follow each other
        ends: list[float] = []
        for event in sorted(
            (e for e in slices if (e["pid"], e["tid"]) == lane), key=lambda event: (event["ts"], -event["dur"])
        ):
            while ends and ends[-1] <= event["ts"] + 1e-3:
                ends.pop()
            assert not ends or event["ts"] + event["dur"] <= ends[-1] + 1e-3
            ends.append(event["ts"] + event["dur"])
    assert load(tmp_path / "trace.json") == trace


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"traceEvents": 1, "otherData": {}}', "[" * 100_000,
     '{"traceEvents": [{"cat": "step", "args": {"launched": "x"}}], "otherData": {}}',
     '{"traceEvents": [{"cat": "step", "args": null}], "otherData": {}}', "\x00\xff"],
)  # fmt: skip
def test_other_files_are_refused_by_name(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(text.encode("latin-1"))
    assert main(["trace", str(path)]) == 2
    assert "is not a trace that paged wrote" in capsys.readouterr().err
    assert not (tmp_path / "other.html").exists()


# -- the page, in a browser --------------------------------------------------------------------------------------------


def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no chromium: apt-get install chromium")


def chromium(page: Path, *options: str) -> str:
    command = [
        browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        f"--user-data-dir={page.parent / 'profile'}", "--window-size=1300,1000", "--virtual-time-budget=3000",
        "--host-resolver-rules=MAP * ~NOTFOUND", *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def draw(trace: Trace, folder: Path, name: str = "trace.json") -> Path:
    trace.save(folder / name)
    assert main(["trace", str(folder / name)]) == 0
    return (folder / name).with_suffix(".html")


def tiles(dom: str) -> dict[str, str]:
    found = re.findall(r'<div class="tile"><b>([^<]*)</b><span>([^<]*)</span></div>', dom)
    return {name: value for value, name in found}


def bars(dom: str, kind: str, prefix: str) -> list[tuple[float, float, float, float]]:
    """x, y, width, height of the drawn bars of a kind; prefix "s" for steps, "r" for requests."""
    number = r"([-\d.]+)"
    pattern = (
        rf'<rect class="{kind}" data-i="{prefix}\d+" x="{number}" y="{number}" width="{number}" height="{number}">'
    )
    return [(float(a), float(b), float(c), float(d)) for a, b, c, d in re.findall(pattern, dom)]


def test_the_page_shows_the_trace(trace: Trace, tmp_path: Path) -> None:
    dom = chromium(draw(trace, tmp_path), "--dump-dom")
    shown = tiles(dom)
    assert shown["steps"] == str(len(trace.steps)) and shown["requests ended"] == "6"
    assert shown["prefill tokens"] == "210" and shown["generated tokens"] == "120"
    assert "Everything that was recorded." in dom and "6 of 6 in this window" in dom
    for request in trace.requests:
        assert f">#{request.id}</text>" in dom and f">{request.num_prompt_tokens} → 20</text>" in dom
    decodes = bars(dom, "decode", "r")
    assert len(decodes) == 6
    # The bars lie on the page where the requests lie in time.
    begins = [x for x, *_ in decodes]
    firsts = [r.first_token for r in sorted(trace.requests, key=lambda r: r.submitted)]
    scale = (max(begins) - min(begins)) / (max(firsts) - min(firsts))
    for begin, first in zip(begins, firsts, strict=True):
        assert begin - begins[0] == pytest.approx((first - firsts[0]) * scale, abs=0.1)
    # The tallest bar of the prefill lane is the largest prefill, and the lanes do not overlap.
    prefill, decode = bars(dom, "prefill", "s"), bars(dom, "decode", "s")
    assert max(height for *_, height in prefill) == pytest.approx(64) == max(height for *_, height in decode)
    assert max(y + height for _, y, _, height in prefill) < min(y for _, y, _, _ in decode)


def test_the_page_is_legible_and_fetches_nothing(trace: Trace, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    page = draw(trace, tmp_path)
    text = page.read_text()
    assert not re.search(r"""(src|href)\s*=|url\(|@import|fetch\(|XMLHttp|https?://""", text)
    chromium(page, f"--screenshot={tmp_path / 'page.png'}")
    pixels = image.open(tmp_path / "page.png").convert("RGB")
    assert pixels.size == (1300, 1000)
    counts = {color: count for count, color in pixels.getcolors(1300 * 1000)}
    prefill, decode, queued = (217, 115, 13), (37, 99, 201), (180, 186, 193)
    assert counts.get((255, 255, 255), 0) > 600_000  # not crammed
    assert counts.get(prefill, 0) > 500 and counts.get(decode, 0) > 5000 and counts.get(queued, 0) > 500


def test_a_long_trace_stays_drawable_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    steps = [StepRecord(i / 100, (i + 0.9) / 100, i % 7 * 10, i % 50, 3, 1, 100) for i in range(100_000)]
    requests = [RequestRecord(i, i / 10, i / 10, i / 10, i / 10 + 5, 5, 0, 9, "cancelled") for i in range(5000)]
    dom = chromium(draw(Trace(steps, requests, 7, 9), tmp_path, "<b>&x.json"), "--dump-dom")
    assert len(bars(dom, "prefill", "s")) < 1500
    assert "200 of 5000 in this window: zoom in for the others." in dom
    assert "7 older steps and 9 older requests found no room" in dom
    assert "<h1>&lt;b&gt;&amp;x.json</h1>" in dom
    assert len(re.findall(r'<rect class="bad"', dom)) == 200


def test_an_empty_trace_is_drawn(tmp_path: Path) -> None:
    shown = tiles(chromium(draw(Trace([], []), tmp_path), "--dump-dom"))
    assert shown["steps"] == "0" and "NaN" not in str(shown)

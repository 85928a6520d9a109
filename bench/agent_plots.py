# SPDX-License-Identifier: Apache-2.0
"""Pictures of what `bench_agents.py` measured, as SVG that is the same for the same records. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from table import Record

ENGINES = {
    "lru": ("LRU", "#868e96"), "ttl": ("TTL 2 s", "#f08c00"), "lru_queue": ("LRU, its queue", "#74b816"),
    "lru_session_order": ("LRU, its queue and admission", "#2b8a3e"),
    "hazard_no_hints": ("default, no hints", "#4dabf7"), "hazard": ("default, true hints", "#1864ab"),
    "clairvoyant": ("clairvoyant", "#ae3ec9"), "bound": ("proven bound", "#212529"),
}  # fmt: skip
SWEEP = {
    "mean_job_time": "mean job time (s)",
    "resume_ttft_p95": "first token on resume, p95 (s)",
    "worst_slowdown": "worst slowdown of a job (x)",
}
_LIMITS = ("bound", "clairvoyant", "endless")  # drawn dashed
SHIFT = {
    "hazard": "true", "hazard_no_hints": "none", "hazard_blind": "unannounced", "hazard_x10": "x 10",
    "hazard_div10": "/ 10", "hazard_shuffled": "shuffled",
}  # fmt: skip


def draw(records: list[Record], folder: Path) -> list[Path]:
    """agents-sweep.svg, over rho, agents-tiers.svg, over the host's tier, and agents-cases.svg, beside LRU; those for
    which there are records."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "paged", "svg.fonttype": "none", "font.size": 9, "path.simplify": True})
    values = {(r.case, r.engine, r.metric): r.value for r in records}
    rhos = sorted(float(case[4:]) for case in {r.case for r in records} if case.startswith("rho=") and "," not in case)
    cases = list(dict.fromkeys(r.case for r in records if r.engine == "hazard" and (r.case, "lru") in
                               {(r.case, r.engine) for r in records}))  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, is_there, plot in (
        ("agents-sweep.svg", len(rhos) > 1, lambda: _sweep(values, rhos)),
        ("agents-tiers.svg", len(_hosts(values)) > 1, lambda: _tiers(values)),
        ("agents-cases.svg", bool(cases), lambda: _cases(values, cases)),
    ):
        if is_there:
            written.append(_save(folder / name, plot))
    return written


def _save(path: Path, plot: Callable[[], Any]) -> Path:
    import matplotlib.pyplot as plt

    figure = plot()
    figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return path


def _with_legend(figure: Any, axes: Any) -> Any:
    """Below the axes, one for all of them."""
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=4, bbox_to_anchor=(0.5, -0.14), frameon=False)
    figure.tight_layout()
    return figure


def _sweep(values: dict[tuple[str, str, str], float], rhos: list[float]) -> Any:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(SWEEP), figsize=(11, 3.4))
    for axis, (metric, title) in zip(axes, SWEEP.items(), strict=True):
        for engine, (label, colour) in ENGINES.items():
            points = [(rho, values[key]) for rho in rhos if (key := (f"rho={rho:g}", engine, metric)) in values]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label, color=colour,
                          linestyle="--" if engine in _LIMITS else "-")  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(rhos, [f"{rho:g}" for rho in rhos])
        axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axis.set_xlabel("rho = live contexts / pool")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    return _with_legend(figure, axes)


def _hosts(values: dict[tuple[str, str, str], float]) -> dict[str, str]:
    """Cases at rho = 2 by the size of their host tier."""
    cases = {case for case, _, _ in values}
    hosts = sorted(float(case.removeprefix("rho=2,host=")) for case in cases if case.startswith("rho=2,host=") and
                   case.count(",") == 1)  # fmt: skip
    return {"none": "rho=2"} | {f"{host:g}": f"rho=2,host={host:g}" for host in hosts}


def _tiers(values: dict[tuple[str, str, str], float]) -> Any:
    import matplotlib.pyplot as plt

    hosts = _hosts(values)
    shown = {"mean_job_time": SWEEP["mean_job_time"], "resume_ttft_p95": SWEEP["resume_ttft_p95"],
             "bytes_from_host": "brought back from the host (GB)"}  # fmt: skip
    figure, axes = plt.subplots(1, len(shown), figsize=(11, 3.4))
    for axis, (metric, title) in zip(axes, shown.items(), strict=True):
        for engine, (label, colour) in (ENGINES | {"endless": ("LRU, endless pool", "#adb5bd")}).items():
            points = [(i, values[key]) for i, case in enumerate(hosts.values()) if (key := (case, engine, metric)) in
                      values and (engine != "endless" or metric != "bytes_from_host")]  # fmt: skip
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label, color=colour,
                          linestyle="--" if engine in _LIMITS else "-")  # fmt: skip
        axis.set_xticks(range(len(hosts)), list(hosts))
        axis.set_ylim(bottom=0)
        axis.set_xlabel("host tier / live contexts, rho = 2")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    return _with_legend(figure, axes)


def _cases(values: dict[tuple[str, str, str], float], cases: list[str]) -> Any:
    """Mean job time and p95 on resume as a share of LRU's, for each kind of hint."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 0.34 * len(cases) + 1.4), sharey=True)
    for axis, metric in zip(axes, ("mean_job_time", "resume_ttft_p95"), strict=True):
        for i, (engine, label) in enumerate(SHIFT.items()):
            shares = [values.get((case, engine, metric), float("nan")) / values[case, "lru", metric] for case in cases]
            rows = [row + 0.12 * (i - 2.5) for row in range(len(cases))]
            axis.scatter(shares, rows, s=14, label=f"hints {label}" if label != "unannounced" else label)
        axis.axvline(1.0, color="#868e96")
        axis.set_title(f"{SWEEP[metric].split(' (')[0]}, of LRU's", fontsize=10)
        axis.set_yticks(range(len(cases)), cases)
        axis.grid(alpha=0.3)
        axis.set_xlim(left=0)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncol=6, bbox_to_anchor=(0.5, -0.1),
                  frameon=False)  # fmt: skip
    figure.tight_layout()
    return figure

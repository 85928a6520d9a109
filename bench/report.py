# SPDX-License-Identifier: Apache-2.0
"""Turns the samples of a run into records and into tables for people."""

from __future__ import annotations

import argparse
import signal
import sys

import measure
import table
import workloads
from measure import LESS_IS_BETTER, METRICS, Key, Samples, Settings
from peers.engines import OURS, Variant
from table import Record, number

_TITLES = {
    (workloads.SINGLE_STREAM.name, "first_token"): "1 stream: first token ms",
    (workloads.SINGLE_STREAM.name, "decode"): "decode tok/s",
    (workloads.MIXED_REQUESTS.name, "output"): "32 mixed: out tok/s",
    (workloads.SHARED_PREFIX.name, "output"): "16 sharing 512: out tok/s",
    (workloads.LONG_PROMPT.name, "prompt"): "4,096 in: in tok/s",
    (workloads.START_UP.name, "import"): "start: import s",
    (workloads.START_UP.name, "load_and_first_token"): "load + first token s",
    (workloads.START_UP.name, "peak_memory"): "peak MB",
}

_LEGEND = (
    "Medians over the rounds; in brackets the share of the limit's row. A single stream's limit is the measured read "
    "bandwidth over the bytes of the weights; the other cases are held against the time of their matrix products alone "
    "through torch (oneDNN). In fp32, paged computes over the weights of a bfloat16 folder as they are stored; the "
    "fp32 limit is for weights widened to four bytes, as transformers holds them."
)


def records_of(bench: str, samples: Samples, variants: list[Variant], cases: list[str]) -> list[Record]:
    """Every variant's median against its limit, and ours also against each peer at the same precision."""
    records = []
    for case in cases:
        for metric, unit in METRICS[case].items():
            for variant in variants:
                value = samples.median((variant.name, case, metric))
                if value is None:
                    continue
                limit = samples.limits.of(case, variant.precision) if unit == "tok/s" else None
                name, ratio = (limit[0], value / limit[1]) if limit else (None, None)
                records.append(Record(bench, case, variant.name, metric, value, unit, name, ratio))
                if variant.engine.name == OURS:
                    for peer in _peers(variant, variants):
                        ratio = _gain(samples, variant, peer, (case, metric), unit)
                        if ratio is not None:
                            records.append(Record(bench, case, variant.name, metric, value, unit, peer.name, ratio))
    return records


def tables_of(samples: Samples, variants: list[Variant], cases: list[str]) -> str:
    """Values with their share of the limit, then ours over each peer, then what was measured and what failed."""
    columns = [(case, metric, unit) for case in cases for metric, unit in METRICS[case].items()]
    header = ["engine", *(_TITLES[case, metric] for case, metric, _ in columns)]
    variants = [v for v in variants if any(samples.values.get((v.name, c, m)) for c, m, _ in columns)]
    rows = [[v.name, *(_cell(samples, v, (v.name, c, m), unit) for c, m, unit in columns)] for v in variants]
    parts = [table.markdown(header, rows + _limit_rows(samples, variants, columns)), _LEGEND]
    gains = [
        [f"{ours.name} over {peer.name}", *(_gain_cell(samples, ours, peer, (c, m), unit) for c, m, unit in columns)]
        for ours in variants
        if ours.engine.name == OURS
        for peer in _peers(ours, variants)
    ]
    if gains:
        parts += [table.markdown(header, gains), "How many times better; below 1 the peer is ahead."]
    if samples.versions:
        parts.append("Measured: " + "; ".join(sorted(samples.versions.values())) + ".")
    parts += [f"{name} failed: {reason.strip().splitlines()[-1]}" for name, reason in samples.failures.items()]
    return "\n\n".join(parts)


def _peers(ours: Variant, variants: list[Variant]) -> list[Variant]:
    return [peer for peer in variants if peer.engine.name != OURS and peer.precision == ours.precision]


def _gain(samples: Samples, ours: Variant, peer: Variant, metric: tuple[str, str], unit: str) -> float | None:
    mine, theirs = samples.median((ours.name, *metric)), samples.median((peer.name, *metric))
    if mine is None or theirs is None:
        return None
    return theirs / mine if unit in LESS_IS_BETTER else mine / theirs


def _cell(samples: Samples, variant: Variant, key: Key, unit: str) -> str:
    value = samples.median(key)
    limit = samples.limits.of(key[1], variant.precision) if unit == "tok/s" else None
    if value is None or limit is None:
        return number(value)
    return f"{number(value)} ({value / limit[1]:.2f})"


def _gain_cell(samples: Samples, ours: Variant, peer: Variant, metric: tuple[str, str], unit: str) -> str:
    ratio = _gain(samples, ours, peer, metric, unit)
    return "–" if ratio is None else f"{ratio:.2f}"


def _limit_rows(samples: Samples, variants: list[Variant], columns: list[tuple[str, str, str]]) -> list[list[str]]:
    rows = []
    for precision in dict.fromkeys(variant.precision for variant in variants):
        limits = [samples.limits.of(case, precision) if unit == "tok/s" else None for case, _, unit in columns]
        if any(limits):
            rows.append([f"limit {precision}", *(number(limit[1]) if limit else "–" for limit in limits)])
    return rows


def run_and_print(bench: str, arguments: argparse.Namespace, settings: Settings, variants: list[Variant]) -> None:
    """Measures `arguments.cases` on `variants` and prints the tables, and the records where `--json` said."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that held workers are ended with us
    machine = table.machine()
    samples = measure.run(variants, arguments.cases, settings)
    heading = f"{machine}; {settings.threads} threads, {settings.rounds} rounds."
    text = f"{heading}\n\n{tables_of(samples, variants, arguments.cases)}"
    table.emit(records_of(bench, samples, variants, arguments.cases), text, arguments.json)

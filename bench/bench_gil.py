# SPDX-License-Identifier: Apache-2.0
"""A single stream with one engine thread, alone and beside a spinning Python thread; and what it costs that thread.

Each engine runs in a process of its own with the spinning thread inside it. Needs a core to spare: two in all.
`bench_gil.py --model FOLDER --gguf FILE`; the peers' environments are those of compare.py.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections import defaultdict
from contextlib import ExitStack
from statistics import median

import measure
import table
import workloads
from peers.engines import ENGINES, LLAMA_CPP, OURS, TRANSFORMERS, Variant
from table import Record, number

_OUTPUT_TOKENS = 128
_SECONDS = 20.0
_METRICS = ("tokens_alone", "tokens_beside", "spins_alone", "spins_beside")

Case = tuple[Variant, bool]
"""A variant, and whether its tokens are streamed or taken by one blocking call."""
Samples = dict[Case, dict[str, list[float]]]


def cases_of(variants: list[Variant]) -> list[Case]:
    """Ours both ways; the peers one token at a time, as their loops in Python do anyway."""
    cases: list[Case] = []
    for variant in variants:
        if variant.model not in ("folder", "gguf") or variant.dtype == "float32":
            continue
        cases += [(variant, False), (variant, True)] if variant.engine.name == OURS else [(variant, True)]
    return cases


def run(cases: list[Case], settings: measure.Settings) -> Samples:
    """Rates of every case, `settings.rounds` times, interleaved."""
    samples: Samples = defaultdict(lambda: defaultdict(list))
    with ExitStack() as stack:
        workers = {}
        for variant, _ in cases:
            if variant not in workers:
                workers[variant] = stack.enter_context(measure.start_serving(variant, settings))
        for round_index in range(settings.rounds):
            prompt = workloads.start_up(round_index).prompts[0]
            for variant, stream in cases:
                answer = workers[variant].run(
                    "beside_spinner", prompt=prompt, max_tokens=_OUTPUT_TOKENS, stream=stream, seconds=_SECONDS
                )
                for metric in _METRICS:
                    samples[variant, stream][metric].append(answer[metric])
                print(f"round {round_index + 1} {_name((variant, stream))}", file=sys.stderr, flush=True)
    return samples


def kept(sample: dict[str, list[float]], what: str) -> float:
    """The median over the rounds of the rate beside the other over the rate alone."""
    pairs = zip(sample[f"{what}_beside"], sample[f"{what}_alone"], strict=True)
    return median(beside / alone for beside, alone in pairs)


def report(samples: Samples) -> tuple[list[Record], str]:
    """The records, and the table for people."""
    records, rows = [], []
    for case, sample in samples.items():
        row = [_name(case)]
        for what, metric, unit in (("tokens", "decode", "tok/s"), ("spins", "spinning thread", "k/s")):
            alone, beside = median(sample[f"{what}_alone"]), median(sample[f"{what}_beside"])
            ratio = kept(sample, what)
            records.append(Record("bench_gil", "busy_thread", _name(case), metric, beside, unit, "alone", ratio))
            row += [number(alone), number(beside), f"{ratio:.3f}"]
        rows.append(row)
    header = ["engine, 1 thread", "alone tok/s", "beside tok/s", "kept", "spins alone k/s", "beside k/s", "kept"]
    return records, table.markdown(header, rows)


def _name(case: Case) -> str:
    variant, stream = case
    return f"{variant.name}, {'streamed' if stream else 'one call'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    measure.add_options(parser)
    table.add_json_option(parser)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=[OURS, LLAMA_CPP.name, TRANSFORMERS.name])
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that held workers are ended with us
    settings = measure.settings_from(parser, arguments, threads=1)
    machine = table.machine()
    records, text = report(run(cases_of(settings.variants(arguments.engines)), settings))
    table.emit(records, f"{machine}; one engine thread, {settings.rounds} rounds.\n\n{text}", arguments.json)


if __name__ == "__main__":
    main()

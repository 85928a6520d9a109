# SPDX-License-Identifier: Apache-2.0
"""Where the time of a decode step goes: `bench_step.py --model FOLDER_OR_GGUF`, one sequence of some 100 tokens.

The ops of the recorded program are timed one by one, and the whole engine by its stream of tokens; what is left is
everything that is no kernel: scheduling, sampling, waking, delivery, Python. Rounds alternate, each the median of its
steps; the least disturbed round of either is what is reported. Products are held against the read bandwidth.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import table
from limits import ReadBandwidth
from paged import LLM, SamplingParams
from paged.inspection import OpTime, decode_op_times

STEPS = 64


def stream_step_seconds(llm: LLM, first_id: int) -> float:
    """Median time between two tokens of one stream."""
    params = SamplingParams(max_tokens=STEPS, temperature=0.0, ignore_eos=True)
    stamps = [time.perf_counter() for _ in llm.stream(list(range(first_id, first_id + 96)), params)]
    return median(after - before for before, after in itertools.pairwise(stamps))


def records_of(times: list[OpTime], step: float, bandwidth: float, name: str) -> list[table.Record]:
    def record(case: str, metric: str, seconds: float, num_bytes: int = 0) -> table.Record:
        reference, ratio = (None, None) if not num_bytes else ("limit: read bandwidth", num_bytes / seconds / bandwidth)
        return table.Record("step", f"{name}: {case}", "paged", metric, seconds * 1e6, "µs", reference, ratio)

    kinds: dict[str, list[OpTime]] = defaultdict(list)
    for op in times:
        kinds[op.kind].append(op)
    ops = sum(op.seconds for op in times)
    found = [
        record(f"{len(of)} x {kind}", "time", sum(op.seconds for op in of), sum(op.matrix_bytes for op in of))
        for kind, of in sorted(kinds.items(), key=lambda item: -sum(op.seconds for op in item[1]))
    ]
    products = sum(op.seconds for op in times if op.matrix_bytes)
    found.append(record("all ops", "time", ops))
    found.append(record("the engine's step", "time", step, sum(op.matrix_bytes for op in times)))
    found.append(table.Record("step", f"{name}: no product", "paged", "share", 100 * (1 - products / step), "%"))
    found.append(table.Record("step", f"{name}: no op", "paged", "share", 100 * (1 - ops / step), "%"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    table.add_json_option(parser)
    arguments = parser.parse_args()
    machine = table.machine()
    best: list[OpTime] = []
    step = float("inf")
    with LLM(arguments.model, num_threads=arguments.threads, max_num_sequences=1, max_model_len=512) as llm:
        for round_index in range(arguments.rounds):
            step = min(step, stream_step_seconds(llm, 1000 + 100 * round_index))
            times = decode_op_times(arguments.model, num_threads=arguments.threads)
            if not best or sum(op.seconds for op in times) < sum(op.seconds for op in best):
                best = times
    num_bytes = sum(op.matrix_bytes for op in best)
    bandwidth = ReadBandwidth().bytes_per_second(num_bytes, arguments.threads)
    records = records_of(best, step, bandwidth, arguments.model.name)
    heading = f"{machine}; {arguments.threads} threads; {bandwidth / 1e9:.1f} GB/s over {num_bytes / 1e6:.0f} MB."
    table.emit(records, f"{heading}\n\n{table.record_table(records)}", arguments.json)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Our engine alone. On the CPU: the workloads of compare.py, held against the machine's read bandwidth; needs no other
environment: `bench_engine.py --model FOLDER --gguf FILE`, or either of the two. On a GPU (`--device cuda`): random
weights of three model shapes on the workloads that vLLM was measured on, held against those numbers and the copy rate.
"""

from __future__ import annotations

import argparse

import gpu_engine
import measure
import report
import table
from peers.engines import OURS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU such as cuda")
    parser.add_argument("--shapes", nargs="+", default=list(gpu_engine.SHAPES), choices=gpu_engine.SHAPES)
    parser.add_argument("--gpu-cases", nargs="+", default=list(gpu_engine.CASES), choices=gpu_engine.CASES)
    parser.add_argument("--batch-invariant", action="store_true", help="on a GPU: LLM(batch_invariant=True)")
    measure.add_options(parser)
    measure.add_workload_options(parser)
    table.add_json_option(parser)
    arguments = parser.parse_args()
    if arguments.device != "cpu":
        run_on_gpu(arguments)
        return
    settings = measure.settings_from(parser, arguments, arguments.threads)
    variants = [variant for variant in settings.variants([OURS]) if variant.model in ("folder", "gguf")]
    report.run_and_print("bench_engine", arguments, settings, variants)


def run_on_gpu(arguments: argparse.Namespace) -> None:
    options = {"batch_invariant": arguments.batch_invariant}
    records = []
    for record in gpu_engine.measure(arguments.device, arguments.shapes, arguments.gpu_cases, options):
        print(record.line(), flush=True)  # what was measured stays, whatever happens next
        records.append(record)
    table.emit(records, table.record_table(records), arguments.json)


if __name__ == "__main__":
    main()

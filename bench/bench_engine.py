# SPDX-License-Identifier: Apache-2.0
"""Our engine alone on the workloads of compare.py, held against the machine's read bandwidth.

Needs no other environment: `bench_engine.py --model FOLDER --gguf FILE`, or either of the two.
"""

from __future__ import annotations

import argparse

import measure
import report
import table
from peers.engines import OURS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    measure.add_options(parser)
    measure.add_workload_options(parser)
    table.add_json_option(parser)
    arguments = parser.parse_args()
    settings = measure.settings_from(parser, arguments, arguments.threads)
    variants = [variant for variant in settings.variants([OURS]) if variant.model in ("folder", "gguf")]
    report.run_and_print("bench_engine", arguments, settings, variants)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""The same workloads on our engine and on its peers, each peer in an environment of its own, interleaved.

First `compare.py --setup`, which makes the peers' environments; then `compare.py --model FOLDER --gguf FILE`.
"""

from __future__ import annotations

import argparse

import measure
import report
import table
from peers.engines import ENGINES, Environments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    measure.add_options(parser)
    measure.add_workload_options(parser)
    table.add_json_option(parser)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), metavar="ENGINE")
    parser.add_argument("--precisions", nargs="+", metavar="NAME", help="only these (bf16, Q8_0 ...)")
    parser.add_argument("--setup", action="store_true", help="make the chosen engines' environments anew, and stop")
    arguments = parser.parse_args()
    if arguments.setup:
        environments = Environments(arguments.venvs.expanduser())
        for name in arguments.engines:
            environments.set_up(ENGINES[name])
        return
    settings = measure.settings_from(parser, arguments, arguments.threads)
    variants = settings.variants(arguments.engines)
    if arguments.precisions is not None:
        variants = [variant for variant in variants if variant.precision in arguments.precisions]
    report.run_and_print("compare", arguments, settings, variants)


if __name__ == "__main__":
    main()

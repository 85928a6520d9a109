# SPDX-License-Identifier: Apache-2.0
"""What a step costs the engine thread beside the device: `bench_host.py --model FOLDER_OR_GGUF`.

Builds and runs tests/cpp/bench_host.cpp with the model's tokenizer; the text that is "generated" is the documentation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import table
from paged.loading.checkpoint import open_checkpoint
from paged.text.tokenizer import Tokenizer, load_tokenizer

ROOT = Path(__file__).resolve().parent.parent


def write_tokens(path: Path, tokenizer: Tokenizer) -> None:
    """As the program's read_text() reads it."""
    blob, offsets, is_special = tokenizer.token_table()
    text = "".join(file.read_text() for file in sorted(ROOT.glob("docs/*.md")))
    ids = tokenizer.encode(text)
    with path.open("wb") as file:
        for values, dtype in (
            ([len(offsets) - 1, len(ids)], np.int64),
            (offsets, np.int64),
            (is_special, np.uint8),
            (ids, np.int32),
        ):
            file.write(np.asarray(values, dtype=dtype).tobytes())
        file.write(blob)


def build(folder: Path) -> Path:
    """The program, built in `folder`."""
    configure = ["cmake", "-S", ROOT, "-B", folder, "-DPAGED_PYTHON=OFF", "-DPAGED_TESTS=ON"]
    for command in (configure, ["cmake", "--build", folder, "--parallel", "--target", "bench_host"]):
        subprocess.run(command, check=True, stdout=sys.stderr)
    return folder / "tests" / "cpp" / "bench_host"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "bench", help="folder to build in (%(default)s)")
    table.add_json_option(parser)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.model, open_checkpoint(arguments.model))
    if tokenizer is None:
        parser.error(f"{arguments.model} has no tokenizer")
    program = build(arguments.build)
    machine = table.machine()
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder, "tokens")
        write_tokens(tokens, tokenizer)
        lines = subprocess.run(
            [program, "--json", "--tokens", tokens], check=True, capture_output=True, text=True
        ).stdout
    records = [table.Record(**json.loads(line)) for line in lines.splitlines()]
    cases = dict.fromkeys(record.case for record in records)
    metrics = list(dict.fromkeys(record.metric for record in records))
    values = {(record.case, record.metric): record.value for record in records}
    rows = [[case, *(table.number(values[case, metric]) for metric in metrics)] for case in cases]
    text = table.markdown(["µs a step", *metrics], rows)
    table.emit(records, f"{machine}; tokens of {arguments.model.name}.\n\n{text}", arguments.json)


if __name__ == "__main__":
    main()

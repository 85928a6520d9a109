# SPDX-License-Identifier: Apache-2.0
"""What every benchmark prints: records as one JSON object a line, and tables for people.

Owns the record's fields and nothing else; knows no workload and no engine. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# Instruction sets that decide the rate of a matrix product, strongest last.
_ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")


@dataclass(frozen=True)
class Record:
    """One measured number.

    `ratio` says how many times better `value` is than what `reference` names, measured in the same run: the quotient of
    the two, turned so that more than 1 is better for `value` (higher for a rate, lower for a time or a size).
    """

    bench: str
    case: str
    engine: str
    metric: str
    value: float
    unit: str
    reference: str | None = None
    ratio: float | None = None

    def line(self) -> str:
        """The record as one line of JSON, numbers rounded to 6 significant digits."""
        fields = asdict(self)
        for name in ("value", "ratio"):
            if fields[name] is not None:
                fields[name] = float(f"{fields[name]:.6g}")
        return json.dumps(fields, ensure_ascii=False)


def number(value: float | None) -> str:
    """Three significant digits as a person reads them: 1,399 · 99.5 · 0.33; a dash for what was not measured."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that reads in a terminal and is Markdown. Columns are padded; numbers keep to the right."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = [("-" * (width - 1) + ":") if column else "-" * width for column, width in enumerate(widths)]
    return "\n".join([line(cells[0]), "| " + " | ".join(rule) + " |", *(line(row) for row in cells[1:])])


def record_table(records: Iterable[Record]) -> str:
    """Every record as a row of a plain table."""
    header = ("case", "engine", "metric", "value", "unit", "reference", "ratio")
    rows = ((r.case, r.engine, r.metric, number(r.value), r.unit, r.reference or "–", number(r.ratio)) for r in records)
    return markdown(header, rows)


def machine() -> str:
    """One line on the machine: processor, instruction sets, cores, load. Nothing that names a host."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    isa = ", ".join(flag for flag in _ISA_FLAGS if flag in flags) or "unknown"
    model = fields.get("model name") or platform.machine()
    cores = len(os.sched_getaffinity(0))
    return f"{model} ({isa}), {cores} cores, load average {os.getloadavg()[0]:.2f} at the start"


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--json [FILE]`."""
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="one JSON object a line, to FILE, or to standard output (the table then goes to standard error)",
    )


def emit(records: Sequence[Record], table: str, json_target: str | None) -> None:
    """Prints `table`, and the records as JSON lines where `--json` said."""
    lines = "".join(record.line() + "\n" for record in records)
    if json_target == "-":
        sys.stdout.write(lines)
    elif json_target is not None:
        Path(json_target).write_text(lines)
    print(table, file=sys.stderr if json_target == "-" else sys.stdout)

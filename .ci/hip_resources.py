#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What each kernel takes on each architecture: reads the log of a HIP build whose PAGED_HIP_EXTRA_FLAGS are
`-v;-Rpass-analysis=kernel-resource-usage`. Exits with 1 if a kernel has registers or
local arrays in memory, or if the log names no kernel."""

import re
import subprocess
import sys
from pathlib import Path

# As the compiler prints them, and as the table heads them.
COLUMNS = {
    "VGPRs": "VGPRs",
    "AGPRs": "AGPRs",
    "TotalSGPRs": "SGPRs",
    "VGPRs Spill": "VGPR spills",
    "SGPRs Spill": "SGPR spills",
    "ScratchSize [bytes/lane]": "scratch",
    "LDS Size [bytes/block]": "static LDS",
    "Occupancy [waves/SIMD]": "waves/SIMD",
}
# `-v` shows each pass's own command line before what that pass says.
PASS = re.compile(r'-cc1 .* "?-target-cpu"? "?(gfx\w+)')
REMARK = re.compile(r"remark: +(.+?): (\S+) \[-Rpass-analysis=kernel-resource-usage\]")


def read_kernels(log: str) -> dict[tuple[str, str], dict[str, int]]:
    """By (mangled name, architecture)."""
    kernels: dict[tuple[str, str], dict[str, int]] = {}
    architecture, current = "", {}
    for line in log.splitlines():
        if found := PASS.search(line):
            architecture = found[1]
        elif found := REMARK.search(line):
            if found[1] == "Function Name":
                current = kernels.setdefault((found[2], architecture), {})
            elif found[1] in COLUMNS:
                current[found[1]] = int(found[2])
    return kernels


def short_names(mangled: list[str]) -> list[str]:
    """Demangled, without what all have in common: the namespace and the parameters."""
    text = subprocess.run(
        ["c++filt", "-p"], input="\n".join(mangled), capture_output=True, text=True, check=True
    ).stdout
    return [re.sub(r"^void |paged::gpu::|\(anonymous namespace\)::", "", name) for name in text.splitlines()]


def main(log: str) -> int:
    kernels = read_kernels(log)
    # A row for all instances of a template: the most that any of them takes (of waves, the fewest).
    groups: dict[tuple[str, str], list[dict[str, int]]] = {}
    for name, (_, architecture), values in zip(
        short_names([name for name, _ in kernels]), kernels, kernels.values(), strict=True
    ):
        groups.setdefault((name.split("<")[0], architecture), []).append(values)
    table = [["kernel", "arch", "instances", *COLUMNS.values()]]
    for (name, architecture), instances in sorted(groups.items()):
        row = [name, architecture, str(len(instances))]
        for column in COLUMNS:
            numbers = [values[column] for values in instances if column in values]
            row.append(str((min if "Occupancy" in column else max)(numbers)) if numbers else "-")
        table.append(row)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    # Scalar registers spill into lanes of vector registers: shown, but not memory.
    spilling = [key for key, values in kernels.items() if values["VGPRs Spill"] or values["ScratchSize [bytes/lane]"]]
    for name, architecture in spilling:
        print(f"memory for registers or local arrays on {architecture}: {name}")
    return 1 if spilling or not kernels else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).read_text()))

# SPDX-License-Identifier: Apache-2.0
"""Seconds that torch (oneDNN) takes for one pass over a model's matrices alone; the rest of an engine comes on top.

Prints one JSON object: dtype -> number of rows -> seconds, best of the passes. No attention, norms or sampling. The
output matrix is included at the row counts of decoding and left out at those of prefill, where only the last row needs
it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

PREFILL_ROWS = (512,)
DECODE_ROWS = (16, 32)
_PASSES = 5


def matrix_shapes(folder: Path) -> tuple[list[list[int]], list[int]]:
    """Shapes [out, in] of every matrix in the layers, and that of the output matrix (the embedding where tied)."""
    layers: list[list[int]] = []
    output: list[int] = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                shape = tensors.get_slice(name).get_shape()
                if name == "lm_head.weight" or (name.endswith("embed_tokens.weight") and not output):
                    output = shape
                elif len(shape) == 2:
                    layers.append(shape)
    return layers, output


def pass_seconds(weights: list[Any], rows: int) -> float:
    """Best time of multiplying [rows, in] by every weight [out, in] once."""
    inputs = {weight.shape[1]: torch.randn(rows, weight.shape[1]).to(weight.dtype) for weight in weights}
    best = float("inf")
    for _ in range(_PASSES + 1):
        start = time.perf_counter()
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    layers, output = matrix_shapes(arguments.model)
    seconds: dict[str, dict[int, float]] = {}
    with torch.inference_mode():
        for dtype in ("bfloat16", "float32"):
            weights = [torch.randn(shape).to(getattr(torch, dtype)) for shape in layers]
            head = torch.randn(output).to(getattr(torch, dtype))
            seconds[dtype] = {rows: pass_seconds(weights, rows) for rows in PREFILL_ROWS}
            seconds[dtype] |= {rows: pass_seconds([*weights, head], rows) for rows in DECODE_ROWS}
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()

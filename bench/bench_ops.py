# SPDX-License-Identifier: Apache-2.0
"""Times every op of the CPU backend against what the machine allows, measured in the same run.

An op that streams its operands is held against the rate at which as many threads read a buffer of that size; one that
computes, against the float32 multiply-adds of the registers alone. Operands are used in turn, from enough copies that
a pass does not find them in the caches of a core. Medians over the rounds. With `--device cuda` or `hip`: the ops of
that backend, by the programs in tests/gpu (gpu_ops.py).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

import gpu_ops
import table
from limits import ReadBandwidth
from paged import _C

ops = _C.ops

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Bytes of 256 weights.
QUANTISED = {"q8_0": 272, "q4_0": 144, "q4_1": 160, "q5_0": 176, "q4_k": 144, "q6_k": 210}
COLD_BYTES = 128 << 20
BANDWIDTH = "limit: read bandwidth"
FMA = "limit: float32 multiply-adds"


@dataclass(frozen=True)
class Case:
    """`calls` of an op on operands of their own; `num_bytes` and `flops` are those of one call."""

    name: str
    calls: list[Callable[[], None]]
    num_bytes: int
    flops: int = 0


def fma_peak(threads: int) -> float:
    """Floating-point operations per second that `threads` threads reach in registers."""
    source = Path(__file__).with_name("fma_peak.c")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "fma_peak"
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-pthread"]
        subprocess.run(["cc", *flags, str(source), "-o", str(program)], check=True)
        return float(subprocess.run([program, str(threads), "10"], check=True, capture_output=True, text=True).stdout)


def packed(threads: _C.ThreadPool, kind: str, rows: int, cols: int) -> _C.WeightMatrix:
    """Random weights; the codes of quantised ones are random bits under the scale of the bits' own."""
    if kind in FLOATS:
        return ops.pack(threads, torch.randn(rows, cols).to(FLOATS[kind]), kind, rows, cols)
    data = torch.randint(0, 60, (rows * cols // 256 * QUANTISED[kind],), dtype=torch.uint8)
    return ops.pack(threads, data, kind, rows, cols)


def linear(threads: _C.ThreadPool, kind: str, num_tokens: int) -> Case:
    rows, cols = 2048, 2048
    dtype = FLOATS.get(kind, torch.float32)
    matrices = [packed(threads, kind, rows, cols)]
    copies = max(2, COLD_BYTES // matrices[0].nbytes) if num_tokens == 1 else 2
    matrices += [packed(threads, kind, rows, cols) for _ in range(copies - 1)]
    x, out = torch.randn(num_tokens, cols).to(dtype), torch.empty(num_tokens, rows)
    calls = [lambda m=m: ops.linear(threads, x, [m], out) for m in matrices]  # type: ignore[misc]
    name = f"linear {kind} [{num_tokens}, {cols}] x [{cols}, {rows}]"
    return Case(name, calls, matrices[0].nbytes, 2 * num_tokens * rows * cols if num_tokens > 1 else 0)


@dataclass(frozen=True)
class Heads:
    """Query heads, heads of keys and values, and their size."""

    queries: int
    keys: int
    dim: int


LARGE_HEADS, SMALL_HEADS = Heads(16, 4, 128), Heads(9, 3, 64)  # the small ones are SmolLM2-135M's


def int8_cache(tokens: int, head_dim: int) -> torch.Tensor:
    """One in which every byte is 9: of codes, and of scales that are tiny but numbers."""
    return torch.full((tokens * (2 * head_dim + 4 * (-(-head_dim // 32) + 1)),), 9, dtype=torch.int8)


def attention(
    threads: _C.ThreadPool, dtype: str, query_len: int, seq_len: int, sequences: int, shape: Heads = LARGE_HEADS
) -> Case:
    """`dtype`: of q and the cache; "int8": of the cache, under q in bfloat16."""
    heads, kv_heads, head_dim, block_size = shape.queries, shape.keys, shape.dim, 16
    blocks = seq_len // block_size * sequences
    tokens = blocks * kv_heads * block_size
    storage = int8_cache(tokens, head_dim) if dtype == "int8" else torch.randn(tokens * 2 * head_dim).to(FLOATS[dtype])
    cache = ops.KvCache(storage, blocks, block_size, kv_heads, head_dim)
    q = torch.randn(query_len * sequences, heads * head_dim).to(FLOATS.get(dtype, torch.bfloat16))
    out, options = torch.empty_like(q), ops.AttentionOptions(head_dim**-0.5)
    start = torch.arange(0, (sequences + 1) * query_len, query_len, dtype=torch.int32)
    lens = torch.full((sequences,), seq_len, dtype=torch.int32)
    tables = torch.randperm(blocks).to(torch.int32).view(sequences, -1)

    def call() -> None:
        ops.attention(threads, q, cache, start, lens, tables, out, heads, options)

    pairs = sequences * query_len * (seq_len - (query_len - 1) / 2)
    flops = int(4 * heads * head_dim * pairs) if query_len > 1 else 0
    name = f"attention {dtype} {sequences} x ({query_len} of {seq_len}), {heads}/{kv_heads} heads of {head_dim}"
    return Case(name, [call], storage.nbytes, flops)


def row_ops(threads: _C.ThreadPool, dtype: str, num_tokens: int) -> Iterator[Case]:
    hidden, inner, head_dim = 2048, 8192, 128
    a, b, c = torch.randn(3, num_tokens, hidden).to(FLOATS[dtype])
    gate, up, gated = torch.randn(3, num_tokens, inner).to(FLOATS[dtype])
    weight, angles = torch.randn(hidden), torch.randn(4096, head_dim)
    positions = torch.arange(num_tokens, dtype=torch.int32)
    kv = torch.zeros(-(-num_tokens // 16) * 2 * 512 * 16).to(FLOATS[dtype])
    cache = ops.KvCache(kv, kv.numel() // (2 * 512 * 16), 16, 4, head_dim)
    k, v = a[:, :512], b[:, :512]
    suffix = f"{dtype} [{num_tokens}, "
    size = a.element_size() * num_tokens
    yield Case(f"rms_norm {suffix}{hidden}]", [lambda: ops.rms_norm(threads, a, weight, 1e-5, c)], 2 * size * hidden)
    call = lambda: ops.add_rms_norm(threads, a, b, weight, 1e-5, c, c)  # noqa: E731
    yield Case(f"add_rms_norm {suffix}{hidden}]", [call], 3 * size * hidden)
    call = lambda: ops.gated_activation(threads, gate, up, "silu", gated)  # noqa: E731
    yield Case(f"silu_mul {suffix}{inner}]", [call], 3 * size * inner)
    call = lambda: ops.rope_store_kv(threads, a, k, v, positions, angles, positions, cache, c)  # noqa: E731
    yield Case(f"rope_store_kv {suffix}{hidden} + 2 x 512]", [call], size * (2 * hidden + 4 * 512))


def sampling(threads: _C.ThreadPool, vocab: int) -> Iterator[Case]:
    logits, out = 3 * torch.randn(1, vocab), torch.empty(1, dtype=torch.int32)
    for how in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 40}, {"temperature": 1.0, "top_p": 0.9}):
        row = ops.SamplingRow(**how)
        words = ", ".join(f"{key} {value}" for key, value in how.items()) or "greedy"
        call = lambda row=row: ops.sample(threads, logits, [row], out)  # noqa: E731
        yield Case(f"sample {vocab}: {words}", [call], logits.nbytes)


def cases(threads: _C.ThreadPool) -> Iterator[Case]:
    for kind in (*FLOATS, *QUANTISED):
        yield linear(threads, kind, 1)
    for kind in ("float32", "bfloat16", "q4_k"):
        for num_tokens in (8, 512):
            yield linear(threads, kind, num_tokens)
    for dtype in ("float32", "bfloat16", "int8"):
        yield attention(threads, dtype, 1, 4096, 8)
        for sequences in (1, 4, 16, 64):
            yield attention(threads, dtype, 1, 16384, sequences, SMALL_HEADS)
        yield attention(threads, dtype, 1, 16384, 1)
        yield attention(threads, dtype, 1024, 1024, 1)
    for dtype in ("float32", "bfloat16"):
        for num_tokens in (1, 256):
            yield from row_ops(threads, dtype, num_tokens)
    yield from sampling(threads, 49152)
    yield from sampling(threads, 262144)


def seconds_of(case: Case, rounds: int) -> float:
    """Median over the rounds of the mean time of a call; a round lasts 50 ms at least."""
    for call in case.calls[:2]:
        call()
    samples = []
    for _ in range(rounds):
        count, begin = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begin) < 0.05 or count < len(case.calls):
            case.calls[count % len(case.calls)]()
            count += 1
        samples.append(elapsed / count)
    return median(samples)


def records_of(case: Case, seconds: float, bandwidth: float, peak: float) -> Iterator[table.Record]:
    yield table.Record("ops", case.name, "paged", "time", seconds * 1e6, "µs")
    if case.flops:
        rate = case.flops / seconds
        yield table.Record("ops", case.name, "paged", "compute", rate / 1e9, "GFLOP/s", FMA, rate / peak)
    else:
        rate = case.num_bytes / seconds
        yield table.Record("ops", case.name, "paged", "read", rate / 1e9, "GB/s", BANDWIDTH, rate / bandwidth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="cases (on a GPU: programs) whose name contains TEXT"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "hip"))
    parser.add_argument("--build", type=Path, default=gpu_ops.ROOT / "build" / "bench-gpu", help="folder, for a GPU")
    table.add_json_option(parser)
    arguments = parser.parse_args()
    if arguments.device != "cpu":
        found = list(gpu_ops.measure(arguments.device, arguments.build, arguments.only))
        table.emit(found, table.record_table(found), arguments.json)
        return
    torch.set_num_threads(1)
    machine, threads = table.machine(), _C.ThreadPool(arguments.threads)
    reader, peak = ReadBandwidth(), fma_peak(arguments.threads)
    rates: dict[int, float] = {}
    records: list[table.Record] = []
    for case in cases(threads):
        if arguments.only not in case.name:
            continue
        size = max(1 << 16, 1 << (case.num_bytes * len(case.calls) - 1).bit_length())
        if size not in rates:
            rates[size] = reader.bytes_per_second(size, arguments.threads)
        records += records_of(case, seconds_of(case, arguments.rounds), rates[size], peak)
        print(f"{case.name}: {table.number(records[-2].value)} µs", file=sys.stderr, flush=True)
    heading = f"{machine}; {arguments.threads} threads, {ops.isa()} kernels, {peak / 1e9:.0f} GFLOP/s in registers."
    table.emit(records, f"{heading}\n\n{table.record_table(records)}", arguments.json)


if __name__ == "__main__":
    main()

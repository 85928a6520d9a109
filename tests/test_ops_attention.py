# SPDX-License-Identifier: Apache-2.0
"""Paged attention against a dense float64 reference, and the same bits however the work is cut."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch

from paged import _C

ops = _C.ops

TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


@dataclass(frozen=True)
class Case:
    """Sequences of (query_len, seq_len) and how they are attended to."""

    sequences: tuple[tuple[int, int], ...] = ((1, 1), (1, 77), (33, 33), (5, 130), (1, 1100))
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 16
    dtype: torch.dtype = torch.float32
    cache_dtype: torch.dtype | None = None
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False


class Batch:
    """Random queries, keys and values of a case; keys and values lie in a shuffled cache full of NaN."""

    def __init__(self, case: Case, threads: _C.ThreadPool) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(0)
        self.keys, self.values, self.queries, self.tables = [], [], [], []
        blocks = sum(-(-seq_len // case.block_size) for _, seq_len in case.sequences)
        order = torch.randperm(blocks + 1, generator=torch.Generator().manual_seed(1)).to(torch.int32)
        elements = (blocks + 1) * 2 * case.num_kv_heads * case.block_size * case.head_dim
        self.storage = torch.full((elements,), torch.nan, dtype=case.cache_dtype or case.dtype)
        self.cache = ops.KvCache(self.storage, blocks + 1, case.block_size, case.num_kv_heads, case.head_dim)
        self.sinks = torch.randn(case.num_heads, generator=generator) if case.sinks else None
        for query_len, seq_len in case.sequences:
            count = -(-seq_len // case.block_size)
            table, order = order[:count], order[count:]
            width = case.num_kv_heads * case.head_dim
            k, v = torch.randn(2, seq_len, width, generator=generator).to(case.dtype)
            position = torch.arange(seq_len)
            slots = table[position // case.block_size] * case.block_size + position % case.block_size
            ops.store_kv(threads, k, v, slots.to(torch.int32), self.cache)
            q = torch.randn(query_len, case.num_heads * case.head_dim, generator=generator).to(case.dtype)
            self.keys.append(k.to(self.storage.dtype)), self.values.append(v.to(self.storage.dtype))
            self.queries.append(q), self.tables.append(table)

    def run(self, threads: _C.ThreadPool, spans: list[tuple[int, int, int]] | None = None) -> list[torch.Tensor]:
        """Attention of spans (sequence, first, last) of the queries, by default all of all sequences in one batch."""
        case = self.case
        spans = spans or [(i, 0, query_len) for i, (query_len, _) in enumerate(case.sequences)]
        q = torch.cat([self.queries[i][first:last] for i, first, last in spans])
        lens = [case.sequences[i][1] - case.sequences[i][0] + last for i, _, last in spans]
        start = torch.tensor([0, *(last - first for _, first, last in spans)]).cumsum(0)
        tables = torch.full((len(spans), max(len(t) for t in self.tables)), -1, dtype=torch.int32)
        for row, (i, _, _) in enumerate(spans):
            tables[row, : len(self.tables[i])] = self.tables[i]
        out = torch.full_like(q, torch.nan)
        options = ops.AttentionOptions(case.head_dim**-0.5, case.window, case.softcap)
        ops.attention(
            threads, q, self.cache, start.to(torch.int32), torch.tensor(lens, dtype=torch.int32), tables, out,
            case.num_heads, options, sinks=self.sinks,
        )  # fmt: skip
        return [out[begin:end] for begin, end in pairwise(start.tolist())]

    def reference(self, sequence: int) -> torch.Tensor:
        case = self.case
        query_len, seq_len = case.sequences[sequence]
        group = case.num_heads // case.num_kv_heads

        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.double().view(len(x), -1, case.head_dim).transpose(0, 1)

        k, v = (heads(x[sequence]).repeat_interleave(group, 0) for x in (self.keys, self.values))
        scores = heads(self.queries[sequence]) @ k.transpose(1, 2) * case.head_dim**-0.5
        if case.softcap:
            scores = case.softcap * torch.tanh(scores / case.softcap)
        behind = torch.arange(seq_len - query_len, seq_len)[:, None] - torch.arange(seq_len)
        hidden = (behind < 0) | (behind >= (case.window or seq_len))
        scores = scores.masked_fill(hidden, -torch.inf)
        if self.sinks is not None:
            sink = self.sinks.double()[:, None, None].expand(-1, query_len, 1)
            scores = torch.cat([scores, sink], 2)
            v = torch.cat([v, torch.zeros_like(v[:, :1])], 1)
        return (scores.softmax(2) @ v).transpose(0, 1).reshape(query_len, -1)


@pytest.fixture(scope="module")
def threads() -> _C.ThreadPool:
    return _C.ThreadPool(3)


def check(case: Case, threads: _C.ThreadPool) -> None:
    batch = Batch(case, threads)
    for sequence, out in enumerate(batch.run(threads)):
        error = (out.double() - batch.reference(sequence)).abs().max()
        assert error <= TOLERANCE[case.dtype], f"sequence {sequence}: {error}"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("head_dim", [2, 24, 64, 80, 96, 128, 256, 512])
@pytest.mark.parametrize("block_size", [1, 8, 16, 64])
def test_matches_float64(threads: _C.ThreadPool, dtype: torch.dtype, head_dim: int, block_size: int) -> None:
    sequences = ((1, 1), (1, 77), (33, 33), (5, 130))
    check(Case(sequences, dtype=dtype, head_dim=head_dim, block_size=block_size), threads)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (9, 3), (8, 1), (40, 1), (4, 4), (14, 2)])
def test_grouped_heads(threads: _C.ThreadPool, num_heads: int, num_kv_heads: int) -> None:
    check(Case(num_heads=num_heads, num_kv_heads=num_kv_heads), threads)


@pytest.mark.parametrize("window", [0, 1, 20, 64, 1030])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("sinks", [False, True])
def test_window_softcap_and_sinks(threads: _C.ThreadPool, window: int, softcap: float, sinks: bool) -> None:
    sequences = ((1, 1), (1, 2500), (70, 1100), (130, 130))
    check(Case(sequences=sequences, window=window, softcap=softcap, sinks=sinks, head_dim=32), threads)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("cache_dtype", TOLERANCE)
def test_cache_of_another_dtype(threads: _C.ThreadPool, dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
    check(Case(dtype=dtype, cache_dtype=cache_dtype), threads)


INVARIANT = [
    Case(sequences=((300, 2300), (1, 1025), (64, 64)), head_dim=32, dtype=dtype, window=window, sinks=window > 0)
    for dtype in TOLERANCE
    for window in (0, 1200)
]


@pytest.mark.parametrize("case", INVARIANT, ids=str)
def test_any_cut_gives_the_same_bits(threads: _C.ThreadPool, case: Case) -> None:
    batch = Batch(case, threads)
    whole = batch.run(threads)
    cuts = [0, 1, 2, 35, 100, 101, 299, 300]
    for pool in (_C.ThreadPool(1), threads, _C.ThreadPool(8)):  # the last two split single queries over the context
        for first, last in pairwise(cuts):
            (alone,) = batch.run(pool, [(0, first, last)])
            assert torch.equal(alone, whole[0][first:last])
        assert torch.equal(batch.run(pool, [(1, 0, 1)])[0], whole[1])
    again = batch.run(threads, [(2, 0, 64), (0, 35, 290), (1, 0, 1)])
    for out, expected in zip(again, (whole[2], whole[0][35:290], whole[1]), strict=True):
        assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_block_size_does_not_change_a_bit(threads: _C.ThreadPool, dtype: torch.dtype) -> None:
    case = Case(dtype=dtype, sequences=((40, 300), (1, 1500)), head_dim=48)
    sizes = (1, 2, 4, 8, 16, 32, 64, 256)
    outs = [torch.cat(Batch(replace(case, block_size=size), threads).run(threads)) for size in sizes]
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_padding_stores_nothing_and_blocks_copy(threads: _C.ThreadPool) -> None:
    storage = torch.zeros(3 * 2 * 2 * 4 * 8)
    cache = ops.KvCache(storage, 3, 4, 2, 8)
    k, v = torch.randn(2, 2, 16)
    ops.store_kv(threads, k, v, torch.tensor([-1, 5], dtype=torch.int32), cache)
    pieces = storage.view(3, 2, 2, 32)
    assert torch.equal(pieces[1, 0, 1].view(8, 4)[:, 1], k[1, 8:])
    assert torch.equal(pieces[1, 1, 0].view(4, 8)[1], v[1, :8])
    assert storage.count_nonzero() == 32
    ops.copy_blocks(threads, cache, torch.tensor([1], dtype=torch.int32), torch.tensor([2], dtype=torch.int32))
    assert torch.equal(pieces[2], pieces[1]) and not pieces[0].any()


def test_errors_say_what_arrived(threads: _C.ThreadPool) -> None:
    for case, message in (
        (Case(block_size=24), "block_size must be a power of two from 1 to 256, got 24"),
        (Case(head_dim=65), "head_dim must be even and from 2 to 512, got 65"),
    ):
        with pytest.raises(ValueError, match=message):
            check(case, threads)
    batch = Batch(Case(), threads)
    batch.case = replace(batch.case, num_heads=5)
    with pytest.raises(ValueError, match="5 query heads do not fall into groups over 2 kv heads"):
        batch.run(threads)

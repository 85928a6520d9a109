# SPDX-License-Identifier: Apache-2.0
"""Paged attention against a dense float64 reference, and the same bits however the work is cut."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch

from paged import _C
from paged.torch_backend.kv_cache import dequantise, quantise

ops = _C.ops

TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
CACHES = [None, torch.int8]  # of q's dtype, and of codes with a scale a row


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


def stored(rows: torch.Tensor, dtype: torch.dtype, head_dim: int, group: int) -> torch.Tensor:
    """What a cache of `dtype` keeps of rows of k or v, by the torch backend's definition."""
    if dtype != torch.int8:
        return rows.to(dtype)
    heads = rows.view(len(rows), -1, head_dim)
    return dequantise(*quantise(heads, group), group, torch.float64).view(rows.shape)


def empty_storage(case: Case, num_blocks: int) -> torch.Tensor:
    """A cache full of NaN; all bits set are a NaN too, in the scales of int8."""
    dtype = case.cache_dtype or case.dtype
    tokens = num_blocks * case.num_kv_heads * case.block_size
    if dtype == torch.int8:
        return torch.full((tokens * (2 * case.head_dim + 4 * (-(-case.head_dim // 32) + 1)),), -1, dtype=dtype)
    return torch.full((tokens * 2 * case.head_dim,), torch.nan, dtype=dtype)


class Batch:
    """Random queries, keys and values of a case; keys and values lie in a shuffled cache full of NaN."""

    def __init__(self, case: Case, threads: _C.ThreadPool) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(0)
        self.keys, self.values, self.queries, self.tables = [], [], [], []
        blocks = sum(-(-seq_len // case.block_size) for _, seq_len in case.sequences)
        order = torch.randperm(blocks + 1, generator=torch.Generator().manual_seed(1)).to(torch.int32)
        self.storage = empty_storage(case, blocks + 1)
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
            self.keys.append(stored(k, self.storage.dtype, case.head_dim, 32))
            self.values.append(stored(v, self.storage.dtype, case.head_dim, case.head_dim))
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


def tolerance(case: Case) -> float:
    """Products of bfloat16 round float32 queries to it where the cache is bfloat16."""
    in_pairs = ops.isa() in ("avx512bf16", "amx") and case.head_dim % 32 == 0
    rounded = in_pairs and case.cache_dtype == torch.bfloat16
    return TOLERANCE[torch.bfloat16 if rounded and case.dtype == torch.float32 else case.dtype]


def check(case: Case, threads: _C.ThreadPool) -> None:
    batch = Batch(case, threads)
    for sequence, out in enumerate(batch.run(threads)):
        expected = batch.reference(sequence)
        error = ((out.double() - expected).abs() / expected.abs().clamp(min=1.0)).max()
        assert error <= tolerance(case), f"sequence {sequence}: {error}"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("head_dim", [2, 24, 64, 80, 96, 128, 256, 512])
@pytest.mark.parametrize("block_size", [1, 8, 16, 64])
def test_matches_float64(threads: _C.ThreadPool, dtype: torch.dtype, head_dim: int, block_size: int) -> None:
    sequences = ((1, 1), (1, 77), (33, 33), (5, 130))
    check(Case(sequences, dtype=dtype, head_dim=head_dim, block_size=block_size), threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [2, 24, 64, 80, 96, 128, 256, 512])
@pytest.mark.parametrize("block_size", [1, 8, 16, 64])
def test_int8_matches_float64(threads: _C.ThreadPool, dtype: torch.dtype, head_dim: int, block_size: int) -> None:
    sequences = ((1, 1), (1, 77), (33, 33), (5, 130))
    check(Case(sequences, dtype=dtype, cache_dtype=torch.int8, head_dim=head_dim, block_size=block_size), threads)


@pytest.mark.parametrize("cache_dtype", CACHES)
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (9, 3), (8, 1), (40, 1), (4, 4), (14, 2)])
def test_grouped_heads(
    threads: _C.ThreadPool, num_heads: int, num_kv_heads: int, cache_dtype: torch.dtype | None
) -> None:
    check(Case(num_heads=num_heads, num_kv_heads=num_kv_heads, cache_dtype=cache_dtype), threads)


@pytest.mark.parametrize("cache_dtype", CACHES)
@pytest.mark.parametrize("window", [0, 1, 20, 64, 1030])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("sinks", [False, True])
def test_window_softcap_and_sinks(
    threads: _C.ThreadPool, window: int, softcap: float, sinks: bool, cache_dtype: torch.dtype | None
) -> None:
    sequences = ((1, 1), (1, 2500), (70, 1100), (130, 130))
    case = Case(sequences=sequences, window=window, softcap=softcap, sinks=sinks, head_dim=32, cache_dtype=cache_dtype)
    check(case, threads)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("cache_dtype", [*TOLERANCE, torch.int8])
def test_cache_of_another_dtype(threads: _C.ThreadPool, dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
    check(Case(dtype=dtype, cache_dtype=cache_dtype), threads)


INVARIANT = [
    Case(
        sequences=((300, 2300), (1, 1025), (64, 64)), head_dim=32, dtype=dtype, cache_dtype=cache_dtype, window=window,
        sinks=window > 0,
    )
    for dtype in TOLERANCE
    for window in (0, 1200)
    for cache_dtype in CACHES
]  # fmt: skip


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


@pytest.mark.parametrize("cache_dtype", CACHES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_block_size_does_not_change_a_bit(
    threads: _C.ThreadPool, dtype: torch.dtype, cache_dtype: torch.dtype | None
) -> None:
    case = Case(dtype=dtype, cache_dtype=cache_dtype, sequences=((40, 300), (1, 1500)), head_dim=48)
    sizes = (1, 2, 4, 8, 16, 32, 64, 256)
    outs = [torch.cat(Batch(replace(case, block_size=size), threads).run(threads)) for size in sizes]
    assert all(torch.equal(out, outs[0]) for out in outs)


SHARING = ((1, 1600), (1, 1601), (1, 1200), (1, 90), (1, 1500), (1, 1536), (1, 1530), (1, 1700))


@pytest.mark.parametrize("shared_blocks", [70, 64, 40, 96])
@pytest.mark.parametrize(
    "case",
    [
        Case(SHARING, dtype=torch.bfloat16),
        Case(SHARING, dtype=torch.bfloat16, num_heads=48, head_dim=96, sinks=True, softcap=9.0),
        Case(SHARING, dtype=torch.bfloat16, cache_dtype=torch.int8),
        Case(SHARING, head_dim=80, window=1650),
        Case(SHARING, window=1701),
    ],
    ids=repr,
)
def test_a_shared_prefix_does_not_change_a_bit(threads: _C.ThreadPool, case: Case, shared_blocks: int) -> None:
    """All but the fourth begin with the first one's blocks, the last three with as many as they have keys for."""
    batch = Batch(case, threads)
    for i, table in enumerate(batch.tables):
        count = min(len(table), shared_blocks if i < 5 else 96)
        if i != 3:
            table[:count] = batch.tables[0][:count]
    one_by_one = [batch.run(threads, [(i, 0, 1)])[0] for i in range(len(SHARING))]
    assert all(torch.equal(*pair) for pair in zip(batch.run(threads), one_by_one, strict=True))
    assert all(torch.equal(*pair) for pair in zip(batch.run(_C.ThreadPool(1)), one_by_one, strict=True))


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


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("block_size", "head_dim"), [(1, 2), (4, 8), (16, 24), (32, 64), (8, 80)])
def test_int8_keeps_codes_and_scales(
    threads: _C.ThreadPool, dtype: torch.dtype, block_size: int, head_dim: int
) -> None:
    """Bit for bit the torch backend's, whatever the magnitude; nothing beside the slots is touched, and blocks copy."""
    case = Case(dtype=dtype, cache_dtype=torch.int8, block_size=block_size, head_dim=head_dim)
    storage = empty_storage(case, 4)
    cache = ops.KvCache(storage, 4, block_size, 2, head_dim)
    generator = torch.Generator().manual_seed(head_dim)
    magnitudes = torch.tensor([0.0, 1e-38, 1e-30, 1e-5, 1.0, 100.0, 1e4])[:, None]
    k, v = ((torch.randn(7, 2 * head_dim, generator=generator) * magnitudes).to(dtype) for _ in range(2))
    slots = torch.randperm(4 * block_size, generator=generator)[:7].to(torch.int32)
    k, v = k[: len(slots)], v[: len(slots)]
    ops.store_kv(threads, k, v, slots, cache)
    ops.copy_blocks(threads, cache, torch.tensor([2], dtype=torch.int32), torch.tensor([3], dtype=torch.int32))
    expected = empty_storage(case, 4)
    key_bytes = block_size * (head_dim + 4 * (-(-head_dim // 32)))
    blocks = expected.view(4, -1)
    pieces = blocks[:, : 2 * key_bytes].view(4, 2, -1), blocks[:, 2 * key_bytes :].view(4, 2, -1)
    for of_kind, rows, group in zip(pieces, (k, v), (32, head_dim), strict=True):
        codes, scales = quantise(rows.view(len(slots), 2, head_dim), group)
        for slot, row, scale in zip(slots.tolist(), codes, scales, strict=True):
            for head in range(2):
                piece, at = of_kind[slot // block_size, head], slot % block_size
                of_scales = piece[: 4 * block_size * scale.shape[1]].view(-1, block_size, 4)
                of_scales[:, at] = scale[head].view(torch.int8).view(-1, 4)
                matrix = piece[4 * block_size * scale.shape[1] :]
                of_slot = (
                    matrix.view(block_size, -1)[at] if of_kind is pieces[1] else matrix.view(-1, block_size)[:, at]
                )
                of_slot.copy_(row[head])
    blocks[3] = blocks[2]
    assert torch.equal(storage, expected)


def test_int8_hands_on_what_is_no_number(threads: _C.ThreadPool) -> None:
    for broken in (torch.nan, torch.inf):
        batch = Batch(Case(((1, 40), (1, 20)), cache_dtype=torch.int8), threads)
        row = torch.zeros(1, 2 * 64)
        row[0, 70] = broken
        slot = batch.tables[0][:1] * 16 + 3
        ops.store_kv(threads, row, torch.zeros_like(row), slot, batch.cache)
        first, second = batch.run(threads)
        assert first[0, 3 * 64 :].isnan().all() and first[0, : 3 * 64].isfinite().all()
        assert second.isfinite().all()


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

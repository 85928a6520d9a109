# SPDX-License-Identifier: Apache-2.0
"""Sampling: greedy, top-k and top-p keep the right tokens, and draws follow the distribution they should."""

from __future__ import annotations

import pytest
import torch

from paged import _C

ops = _C.ops


@pytest.fixture(scope="module")
def threads() -> _C.ThreadPool:
    return _C.ThreadPool(3)


def sample(threads: _C.ThreadPool, logits: torch.Tensor, *rows: object) -> list[int]:
    out = torch.full((len(logits),), -7, dtype=torch.int32)
    ops.sample(threads, logits, list(rows), out)
    return [int(token) for token in out]


def draws(threads: _C.ThreadPool, logits: torch.Tensor, count: int, **how: float) -> torch.Tensor:
    """How often each token is drawn at `count` positions of one row."""
    rows = [ops.SamplingRow(seed=5, position=i, **how) for i in range(count)]
    return torch.tensor(sample(threads, logits.repeat(count, 1), *rows)).bincount(minlength=len(logits))


def kept(logits: torch.Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
    """The distribution that vLLM's order of filters leaves: temperature, top-k, then top-p of what remains."""
    scaled = logits.double() / temperature
    if top_k:
        scaled = scaled.masked_fill(scaled < scaled.topk(top_k).values[-1], -torch.inf)
    probabilities, order = scaled.softmax(0).sort(descending=True)
    nucleus = probabilities.masked_fill(probabilities.cumsum(0) - probabilities >= top_p, 0)
    return torch.zeros_like(scaled).scatter(0, order, nucleus / nucleus.sum())


@pytest.mark.parametrize("vocab", [1, 15, 16, 17, 1000, 49153])
def test_greedy_takes_the_lowest_id_of_the_largest(threads: _C.ThreadPool, vocab: int) -> None:
    logits = torch.randn(6, vocab, generator=torch.Generator().manual_seed(0))
    logits[1, vocab // 2 :] = 9.0
    logits[2, vocab - 1] = 9.0
    logits[3] = -1e30
    greedy = [ops.SamplingRow()] * 6
    found = sample(threads, logits, *greedy)
    assert found == [int(row.argmax()) for row in logits[:1]] + [
        vocab // 2,
        vocab - 1,
        0,
        *(int(row.argmax()) for row in logits[4:]),
    ]
    assert [sample(threads, row[None], greedy[0])[0] for row in logits] == found  # one row is shared by the threads


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 7},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 1.5, "top_k": 20, "top_p": 0.8},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_p": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("vocab", [40, 700])
def test_draws_follow_the_distribution(threads: _C.ThreadPool, how: dict[str, float], vocab: int) -> None:
    logits = 2.0 * torch.randn(vocab, generator=torch.Generator().manual_seed(1))
    count = 20000
    expected = kept(logits, how["temperature"], int(how.get("top_k", 0)), max(how.get("top_p", 1.0), 1e-9))
    counts = draws(threads, logits, count, **how)
    assert not counts[expected == 0].any()
    deviation = (counts - count * expected) / (count * expected * (1 - expected)).clamp(min=1.0).sqrt()
    assert deviation.abs().max() < 5.0


@pytest.mark.parametrize("vocab", [50, 5000, 49152, 262144])
@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0])
def test_every_draw_is_kept_by_the_filters(threads: _C.ThreadPool, vocab: int, scale: float) -> None:
    logits = scale * torch.randn(vocab, generator=torch.Generator().manual_seed(vocab))
    for how in ({"top_k": 40}, {"top_k": vocab - 1}, {"top_p": 0.9}, {"top_k": vocab // 3, "top_p": 0.5}, {}):
        expected = kept(logits, 0.8, how.get("top_k", 0), how.get("top_p", 1.0) + 1e-6)
        counts = draws(threads, logits, 8, temperature=0.8, **how)
        if scale > 0.0:  # with equal logits every token is kept by every filter
            assert not counts[expected == 0].any(), how
        assert counts.sum() == 8


def test_top_k_keeps_ties(threads: _C.ThreadPool) -> None:
    logits = torch.tensor([0.0, 3.0, 3.0, 3.0, -1.0])
    assert (draws(threads, logits, 300, temperature=1.0, top_k=2) > 0).tolist() == [False, True, True, True, False]


def test_a_draw_depends_on_seed_and_position_alone(threads: _C.ThreadPool) -> None:
    logits = torch.randn(50, 3000, generator=torch.Generator().manual_seed(2))
    rows = [ops.SamplingRow(temperature=1.0, top_p=0.95, seed=i % 3, position=i) for i in range(50)]
    together = sample(threads, logits, *rows)
    alone = [sample(_C.ThreadPool(1), logits[i : i + 1], rows[i])[0] for i in range(50)]
    assert together == alone
    same = logits[:1].repeat(200, 1)
    by_position = sample(threads, same, *(ops.SamplingRow(temperature=1.0, seed=1, position=i) for i in range(200)))
    by_seed = sample(threads, same, *(ops.SamplingRow(temperature=1.0, seed=2**63 + i, position=0) for i in range(200)))
    assert len(set(by_position)) > 100 and len(set(by_seed)) > 100


def test_a_vanishing_temperature_is_greedy(threads: _C.ThreadPool) -> None:
    logits = torch.randn(1, 500, generator=torch.Generator().manual_seed(3))
    for temperature in (1e-45, 1e-30, 1e-6):
        assert sample(threads, logits, ops.SamplingRow(temperature=temperature, seed=9)) == [int(logits.argmax())]


def test_a_broken_row_fails_alone(threads: _C.ThreadPool) -> None:
    logits = torch.zeros(5, 100)
    logits[0, 50], logits[1, 99], logits[2, 3] = 1.0, torch.nan, torch.inf
    logits[3] = -torch.inf
    logits[4, 2:] = -torch.inf
    for temperature in (0.0, 1.0):
        rows = [ops.SamplingRow(temperature=temperature, top_k=1)] * 4 + [ops.SamplingRow(temperature)]
        out = sample(threads, logits, *rows)
        assert out[:4] == [50, -1, -1, -1] and out[4] in (0, 1)
        alone = [sample(threads, logits[i : i + 1], row)[0] for i, row in enumerate(rows)]
        assert alone == out


def test_a_broken_row_of_many_logits_has_no_token(threads: _C.ThreadPool) -> None:
    for broken in (torch.nan, torch.inf):
        for at in (0, 8191, 8192, 49151):
            logits = torch.zeros(1, 49152)
            logits[0, at] = broken
            assert sample(threads, logits, ops.SamplingRow()) == [-1]


def test_errors_say_what_arrived(threads: _C.ThreadPool) -> None:
    with pytest.raises(ValueError, match="sample: logits must be float32, got bfloat16"):
        sample(threads, torch.zeros(1, 5, dtype=torch.bfloat16), ops.SamplingRow())
    with pytest.raises(ValueError, match="sample: 2 rows of logits but 1 SamplingRow"):
        sample(threads, torch.zeros(2, 5), ops.SamplingRow())

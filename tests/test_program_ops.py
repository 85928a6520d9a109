# SPDX-License-Identifier: Apache-2.0
"""The torch kernels against formulas written out per element, where no whole model covers them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from paged.program import ir
from paged.program.rope_tables import RopeSpec, rope_table
from paged.torch_backend.kernels import KERNELS, Step
from paged.torch_backend.kv_cache import KvCache
from paged.torch_backend.step_batch import prompt_batch

HEADS, KV_HEADS, HEAD_DIM, TOKENS = 4, 2, 8, 7


def make_step() -> Step:
    cache = KvCache(ir.KvCacheSpec(1, KV_HEADS, HEAD_DIM), 16, torch.float64, torch.device("cpu"))
    return Step(prompt_batch(range(TOKENS), 4), torch.device("cpu"), 4, torch.float64, cache)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [8, 4])
def test_rope_rotates_pairs_and_leaves_the_rest(interleaved: bool, rotary_dim: int) -> None:
    table = torch.from_numpy(rope_table(RopeSpec("default", 100.0, rotary_dim), TOKENS)).double()
    x = randn(TOKENS, HEADS * HEAD_DIM)
    (out,) = KERNELS["rope"](make_step(), ir.Rope(HEAD_DIM, rotary_dim, interleaved), [x], [table])
    half = rotary_dim // 2
    for token in range(TOKENS):
        for head in range(HEADS):
            was, now = (t[token, head * HEAD_DIM : (head + 1) * HEAD_DIM] for t in (x, out))
            assert torch.equal(was[rotary_dim:], now[rotary_dim:])
            for i in range(half):
                first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
                turned = complex(was[first], was[second]) * complex(table[token, i], table[token, half + i])
                assert complex(now[first], now[second]) == pytest.approx(turned)


@pytest.mark.parametrize("window", [0, 1, 3, 100])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_attention_by_definition(window: int, softcap: float, with_sinks: bool) -> None:
    step = make_step()
    q, k = randn(TOKENS, HEADS * HEAD_DIM), randn(TOKENS, KV_HEADS * HEAD_DIM)
    v = k.flip(0).sin()
    sinks = randn(HEADS)
    KERNELS["store_kv"](step, ir.StoreKv(0), [k, v], [])
    op = ir.Attention(0, HEADS, 0.3, window, softcap)
    (out,) = KERNELS["attention"](step, op, [q], [sinks] if with_sinks else [])
    for token in range(TOKENS):
        for head in range(HEADS):
            columns = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
            kv_columns = slice(head // 2 * HEAD_DIM, (head // 2 + 1) * HEAD_DIM)
            first = max(0, token - window + 1) if window else 0
            scores = [float(q[token, columns] @ k[past, kv_columns]) * 0.3 for past in range(first, token + 1)]
            scores = [softcap * math.tanh(score / softcap) for score in scores] if softcap else scores
            weights = np.exp(scores)
            weights /= weights.sum() + (math.exp(float(sinks[head])) if with_sinks else 0.0)
            expected = torch.from_numpy(weights) @ v[first : token + 1, kv_columns]
            torch.testing.assert_close(out[token, columns], expected)


def test_store_kv_skips_negative_slots() -> None:
    step = make_step()
    step.slot_mapping[2] = -1
    k = randn(TOKENS, KV_HEADS * HEAD_DIM)
    KERNELS["store_kv"](step, ir.StoreKv(0), [k, k], [])
    stored = step.kv_cache.elements[0, 0].reshape(16, -1)
    kept = [0, 1, 3, 4, 5, 6]
    assert torch.equal(stored[kept], k[kept])
    assert not stored[2].any()
    assert not stored[7:].any()


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu_erf"])
def test_gated_activation_by_definition(activation: ir.ActivationKind) -> None:
    gate, up = randn(3, 5), randn(5, 3).T
    (out,) = KERNELS["gated_activation"](make_step(), ir.GatedActivation(activation), [gate, up], [])
    formulas = {
        "silu": lambda x: x / (1.0 + math.exp(-x)),
        "gelu_tanh": lambda x: 0.5 * x * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),
        "gelu_erf": lambda x: 0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0))),
    }
    active = [[formulas[activation](element) for element in row] for row in gate.tolist()]
    torch.testing.assert_close(out, torch.tensor(active, dtype=torch.float64) * up)


def test_softcap_and_grouped_norm_by_definition() -> None:
    x = randn(3, 8)
    (capped,) = KERNELS["softcap"](make_step(), ir.Softcap(1.5), [x], [])
    torch.testing.assert_close(capped, 1.5 * torch.tanh(x / 1.5))
    weight = randn(4)
    (normed,) = KERNELS["rms_norm"](make_step(), ir.RmsNorm(4, 1e-3), [x], [weight])
    for row in range(3):
        for group in (slice(0, 4), slice(4, 8)):
            scale = math.sqrt(float((x[row, group] ** 2).mean()) + 1e-3)
            torch.testing.assert_close(normed[row, group], x[row, group] / scale * weight)

# SPDX-License-Identifier: Apache-2.0
"""One function per op: (step, attributes, inputs, weights) -> outputs, whose rounding to the value's dtype is the
caller's. Sums, norms, softmax and rotations happen in the step's accumulator (float32, or float64 for a reference)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from paged.program import ir
from paged.torch_backend.kv_cache import KvCache
from paged.torch_backend.step_batch import StepBatch


class Step:
    """A batch's index arrays on the device, and the cache."""

    def __init__(
        self, batch: StepBatch, device: torch.device, block_size: int, accumulator: torch.dtype, kv_cache: KvCache
    ) -> None:
        def indices(array: Any) -> Tensor:
            return torch.as_tensor(array, dtype=torch.int64).to(device)

        self.token_ids = indices(batch.token_ids)
        self.positions = indices(batch.positions)
        self.slot_mapping = indices(batch.slot_mapping)
        self.logits_rows = indices(batch.logits_rows)
        self.block_tables = indices(batch.block_tables)
        self.query_start = batch.query_start.tolist()
        self.seq_lens = batch.seq_lens.tolist()
        self.block_size = block_size
        self.accumulator = accumulator
        self.kv_cache = kv_cache

    def slots(self, sequence: int) -> Tensor:
        """The cache slots of the sequence's tokens, by position: [seq_len]."""
        positions = torch.arange(self.seq_lens[sequence], device=self.block_tables.device)
        blocks = self.block_tables[sequence, positions // self.block_size]
        return blocks * self.block_size + positions % self.block_size


Tensors = list[Tensor]


def embedding(step: Step, op: ir.Embedding, inputs: Tensors, weights: Tensors) -> Tensors:
    return [weights[0][step.token_ids].to(step.accumulator) * op.scale]


def linear(step: Step, op: ir.Linear, inputs: Tensors, weights: Tensors) -> Tensors:
    (x,) = inputs
    parts = [functional.linear(x, weight) for weight in weights[: op.num_parts]]
    out = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
    biases = weights[op.num_parts :]
    return [out.to(step.accumulator) + torch.cat(biases) if biases else out]


def rms_norm(step: Step, op: ir.RmsNorm, inputs: Tensors, weights: Tensors) -> Tensors:
    groups = _split(inputs[0].to(step.accumulator), op.width)
    return [_normalised(groups, weights[0], op.eps).flatten(1)]


def add_rms_norm(step: Step, op: ir.AddRmsNorm, inputs: Tensors, weights: Tensors) -> Tensors:
    total = inputs[0] + inputs[1]
    return [total, _normalised(total.to(step.accumulator), weights[0], op.eps)]


def add(step: Step, op: ir.Add, inputs: Tensors, weights: Tensors) -> Tensors:
    return [inputs[0] + inputs[1]]


def rope(step: Step, op: ir.Rope | ir.RopeStoreKv, inputs: Tensors, weights: Tensors) -> Tensors:
    x = _split(inputs[0].to(step.accumulator), op.head_dim)
    cos, sin = weights[0][step.positions][:, None, :].chunk(2, dim=-1)
    rotated, rest = x[..., : op.rotary_dim], x[..., op.rotary_dim :]
    if op.interleaved:
        a, b = rotated[..., 0::2], rotated[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    else:
        a, b = rotated.chunk(2, dim=-1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    return [torch.cat((turned, rest), dim=-1).flatten(1)]


def store_kv(step: Step, op: ir.StoreKv | ir.RopeStoreKv, inputs: Tensors, weights: Tensors) -> Tensors:
    kept = step.slot_mapping >= 0
    rows = [_split(x[kept], step.kv_cache.head_dim) for x in inputs]
    step.kv_cache.store(op.layer, step.slot_mapping[kept], rows)
    return []


def rope_store_kv(step: Step, op: ir.RopeStoreKv, inputs: Tensors, weights: Tensors) -> Tensors:
    q, k, v = inputs
    table, norms = weights[:1], weights[1:]
    if norms:
        q, k = (
            rms_norm(step, ir.RmsNorm(op.head_dim, op.eps), [x], [norm])[0].to(x.dtype)
            for x, norm in zip((q, k), norms, strict=True)
        )
    (rotated_k,) = rope(step, op, [k], table)
    store_kv(step, op, [rotated_k, v], [])
    return rope(step, op, [q], table)


def attention(step: Step, op: ir.Attention, inputs: Tensors, weights: Tensors) -> Tensors:
    q = _split(inputs[0].to(step.accumulator), step.kv_cache.head_dim)
    sinks = weights[0] if weights else None
    out = torch.empty_like(q)
    for sequence in range(len(step.seq_lens)):
        rows = slice(step.query_start[sequence], step.query_start[sequence + 1])
        keys, values = step.kv_cache.read(op.layer, step.slots(sequence), step.accumulator)
        out[rows] = _attend(op, q[rows], (keys, values), step.positions[rows], sinks)
    return [out.flatten(1)]


def gated_activation(step: Step, op: ir.GatedActivation, inputs: Tensors, weights: Tensors) -> Tensors:
    gate, up = (x.to(step.accumulator) for x in inputs)
    match op.activation:
        case "silu":
            active = functional.silu(gate)
        case "gelu_tanh":
            active = functional.gelu(gate, approximate="tanh")
        case "gelu_erf":
            active = functional.gelu(gate)
    return [active * up]


def gated_linear(step: Step, op: ir.GatedLinear, inputs: Tensors, weights: Tensors) -> Tensors:
    products = [functional.linear(inputs[0], weight) for weight in weights]
    return [*gated_activation(step, ir.GatedActivation(op.activation), products, []), torch.cat(products, dim=1)]


def gather_rows(step: Step, op: ir.GatherRows, inputs: Tensors, weights: Tensors) -> Tensors:
    return [inputs[0][step.logits_rows]]


def softcap(step: Step, op: ir.Softcap, inputs: Tensors, weights: Tensors) -> Tensors:
    return [op.cap * torch.tanh(inputs[0].to(step.accumulator) / op.cap)]


def _split(x: Tensor, width: int) -> Tensor:
    """[rows, cols / width, width]"""
    return x.reshape(x.shape[0], x.shape[1] // width, width)


def _normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def _attend(
    op: ir.Attention, q: Tensor, cached: tuple[Tensor, Tensor], positions: Tensor, sinks: Tensor | None
) -> Tensor:
    """q [query_len, num_heads, head_dim] over keys and values [seq_len, num_kv_heads, head_dim]."""
    group = op.num_heads // cached[0].shape[1]
    keys, values = (x.repeat_interleave(group, dim=1) for x in cached)
    scores = torch.einsum("qhd,khd->hqk", q, keys) * op.scale
    if op.softcap > 0.0:
        scores = op.softcap * torch.tanh(scores / op.softcap)
    distance = positions[:, None] - torch.arange(keys.shape[0], device=q.device)
    hidden = distance < 0
    if op.window > 0:
        hidden = hidden | (distance >= op.window)
    scores = scores.masked_fill(hidden, -math.inf)
    if sinks is None:
        weights = scores.softmax(dim=-1)
    else:
        column = sinks[:, None, None].expand(-1, scores.shape[1], 1)
        weights = torch.cat((scores, column), dim=-1).softmax(dim=-1)[..., :-1]
    return torch.einsum("hqk,khd->qhd", weights, values)


KERNELS: Mapping[str, Callable[[Step, Any, Tensors, Tensors], Tensors]] = MappingProxyType(
    {
        "embedding": embedding,
        "linear": linear,
        "rms_norm": rms_norm,
        "add_rms_norm": add_rms_norm,
        "add": add,
        "rope": rope,
        "store_kv": store_kv,
        "rope_store_kv": rope_store_kv,
        "attention": attention,
        "gated_activation": gated_activation,
        "gated_linear": gated_linear,
        "gather_rows": gather_rows,
        "softcap": softcap,
    }
)

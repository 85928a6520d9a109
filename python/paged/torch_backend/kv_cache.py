# SPDX-License-Identifier: Apache-2.0
"""The torch backend's keys and values by slot, in a float dtype or as int8 codes with scales."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from paged.program.ir import KEY_SCALE_GROUP, KvCacheSpec

_SMALLEST = 1e-30  # what is below it counts as zero


class KvCache:
    """elements [num_layers, 2, num_slots, num_kv_heads, head_dim]; of int8 (`dtype`), codes with float32 scales of keys
    [num_layers, num_slots, num_kv_heads, groups of 32 components] and of values [..., 1]."""

    def __init__(self, spec: KvCacheSpec, num_slots: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (spec.num_layers, 2, num_slots, spec.num_kv_heads, spec.head_dim)
        self.elements = torch.zeros(shape, dtype=dtype, device=device)
        self._groups = (KEY_SCALE_GROUP, spec.head_dim)
        self.scales = [
            torch.zeros((spec.num_layers, *shape[2:4], -(-spec.head_dim // group)), device=device)
            for group in self._groups
            if dtype == torch.int8
        ]

    @property
    def head_dim(self) -> int:
        return self.elements.shape[-1]

    def store(self, layer: int, slots: Tensor, keys_and_values: Sequence[Tensor]) -> None:
        """Keys, then values, each [len(slots), num_kv_heads, head_dim]."""
        for which, rows in enumerate(keys_and_values):
            if self.scales:
                rows, self.scales[which][layer, slots] = quantise(rows, self._groups[which])
            self.elements[layer, which, slots] = rows.to(self.elements.dtype)

    def read(self, layer: int, slots: Tensor, dtype: torch.dtype) -> Tensor:
        """[2, len(slots), num_kv_heads, head_dim] in `dtype`."""
        elements = self.elements[layer][:, slots]
        if not self.scales:
            return elements.to(dtype)
        parts = zip(elements, self.scales, self._groups, strict=True)
        return torch.stack([dequantise(codes, scales[layer, slots], group, dtype) for codes, scales, group in parts])

    def copy_blocks(self, pairs: Iterable[tuple[int, int]], block_size: int) -> None:
        """Copies whole blocks (source, destination) in every layer, one pair after the other."""
        for source, destination in pairs:
            to, source_slots = (slice(block * block_size, (block + 1) * block_size) for block in (destination, source))
            self.elements[:, :, to] = self.elements[:, :, source_slots]
            for scales in self.scales:
                scales[:, to] = scales[:, source_slots]


def quantise(rows: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """(codes int8 [..., width], scales float32 [..., groups]) of rows [..., width], each `group` neighbours with a
    scale of their own (the last may be fewer): rows = codes * scales, rounded to nearest even, the largest magnitude
    127. Where a NaN or an infinity is, the scale is NaN, of zeros it is zero."""
    x = rows.float()
    parts = [_quantise_part(x[..., start : start + group]) for start in range(0, x.shape[-1], group)]
    return torch.cat([codes for codes, _ in parts], -1), torch.cat([scale for _, scale in parts], -1)


def dequantise(codes: Tensor, scales: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    """What `quantise` rounded the rows to."""
    return codes.to(dtype) * scales.to(dtype).repeat_interleave(group, dim=-1)[..., : codes.shape[-1]]


def _quantise_part(x: Tensor) -> tuple[Tensor, Tensor]:
    largest = x.abs().amax(-1, keepdim=True)
    finite = torch.isfinite(largest)
    inverse = torch.full_like(largest, 127.0) / largest  # 127.0 / largest would multiply by the reciprocal
    inverse = torch.where(finite & (largest >= _SMALLEST), inverse, torch.zeros_like(largest))
    scales = torch.where(largest < _SMALLEST, torch.zeros_like(largest), largest * (1.0 / 127.0))
    codes = torch.where(finite, (x * inverse).round(), torch.zeros_like(x)).to(torch.int8)
    return codes, torch.where(finite, scales, torch.full_like(scales, torch.nan))

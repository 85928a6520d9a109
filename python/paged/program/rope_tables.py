# SPDX-License-Identifier: Apache-2.0
"""Rotary position tables: plain RoPE (Su et al. 2021, RoFormer), linear position interpolation (Chen et al. 2023),
Llama 3.1's frequency-dependent scaling (Meta, llama-models) and YaRN (Peng et al. 2023).

Frequencies and angles are float32 and rounded where transformers rounds them: at position 100,000 one last bit of a
frequency turns a pair by 0.01 radian, and models are trained with the rounded ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]
RopeType = Literal["default", "linear", "llama3", "yarn"]

_ROWS_AT_A_TIME = 8192  # bounds the scratch memory of long tables


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """What a table is computed from. `factor` stretches the context (all types but default); `low_freq_factor` and
    `high_freq_factor` belong to llama3, `beta_*` and `truncate` to yarn. `attention_factor` multiplies the table."""

    rope_type: RopeType
    theta: float
    rotary_dim: int
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


def rope_table(spec: RopeSpec, num_positions: int) -> Float32s:
    """The table [num_positions, rotary_dim]: the first half of a row cosines, the second half sines."""
    half = spec.rotary_dim // 2
    frequencies = inverse_frequencies(spec)
    table = np.empty((num_positions, spec.rotary_dim), dtype=np.float32)
    for first in range(0, num_positions, _ROWS_AT_A_TIME):
        rows = table[first : first + _ROWS_AT_A_TIME]
        positions = np.arange(first, first + len(rows), dtype=np.float32)
        angles = positions[:, None] * frequencies
        np.cos(angles, out=rows[:, :half])
        np.sin(angles, out=rows[:, half:])
        if spec.attention_factor != 1.0:
            rows *= np.float32(spec.attention_factor)
    return table


def inverse_frequencies(spec: RopeSpec) -> Float32s:
    """Radians per position of each pair of elements: [rotary_dim / 2] float32."""
    exponents = np.arange(0, spec.rotary_dim, 2, dtype=np.float32) / np.float32(spec.rotary_dim)
    wavelengths = np.power(spec.theta, exponents.astype(np.float64)).astype(np.float32)  # over 2 pi
    plain = np.float32(1.0) / wavelengths
    match spec.rope_type:
        case "default":
            return plain
        case "linear":
            return plain / np.float32(spec.factor)
        case "llama3":
            return _llama3(spec, plain)
        case "yarn":
            return _yarn(spec, plain, np.float32(1.0) / (np.float32(spec.factor) * wavelengths))


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """YaRN's temperature (equation 22 of the paper) as transformers folds it into cosines and sines."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def _llama3(spec: RopeSpec, plain: Float32s) -> Float32s:
    """Long wavelengths are stretched by the factor, short ones stay, those between are blended."""
    turns = plain * np.float32(spec.original_max_positions / (2.0 * math.pi))  # over the original context
    blend = (turns - np.float32(spec.low_freq_factor)) / np.float32(spec.high_freq_factor - spec.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return np.asarray((1.0 - blend) * plain / np.float32(spec.factor) + blend * plain, dtype=np.float32)


def _yarn(spec: RopeSpec, plain: Float32s, stretched: Float32s) -> Float32s:
    """Pairs with more than beta_fast turns over the original context stay, with fewer than beta_slow are stretched."""
    dim = spec.rotary_dim

    def pair_with(turns: float) -> float:
        return dim * math.log(spec.original_max_positions / (turns * 2.0 * math.pi)) / (2.0 * math.log(spec.theta))

    low, high = pair_with(spec.beta_fast), pair_with(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
    return np.asarray(stretched * ramp + plain * (1.0 - ramp), dtype=np.float32)

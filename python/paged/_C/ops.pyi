# SPDX-License-Identifier: Apache-2.0
"""The CPU ops one by one, for tests and benchmarks. `Tensor` is any CPU tensor that speaks DLPack (torch, numpy).

Outputs are given by the caller and written in place. Raises ValueError for shapes, dtypes or devices that do not fit.
"""

from collections.abc import Sequence
from typing import Any

from paged._C import ThreadPool

Tensor = Any

class WeightMatrix:
    """Weights [rows, cols] packed for this CPU."""

    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

class KvCache:
    """One layer's cache in a tensor of num_blocks * 2 * num_kv_heads * block_size * head_dim elements; of int8 bytes,
    with 4 * (ceil(head_dim / 32) + 1) more for each head of a token, for the scales."""

    def __init__(self, storage: Tensor, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int) -> None: ...

class AttentionOptions:
    """scale of the scores; window and softcap, 0 turns them off."""

    def __init__(self, scale: float, window: int = 0, softcap: float = 0.0) -> None: ...

class SamplingRow:
    """How one row samples; temperature 0 is greedy, top_k 0 keeps all."""

    def __init__(
        self, temperature: float = 0.0, top_p: float = 1.0, top_k: int = 0, seed: int = 0, position: int = 0
    ) -> None: ...

def isa() -> str:
    """Name of the instruction set the kernels were chosen for."""

def pack(
    threads: ThreadPool,
    source: Tensor,
    type: str,
    rows: int,
    cols: int,
    row_order: Tensor | None = None,
) -> WeightMatrix:
    """Packs checkpoint rows (any contiguous tensor of their bytes)."""

def quantize(threads: ThreadPool, source: Tensor, type: str, rows: int, cols: int, out: Tensor, target: str) -> None:
    """Writes float rows as the blocks of `target`, "q8_0" or "q4_1", to the bytes of out."""

def unpack(threads: ThreadPool, matrix: WeightMatrix, out: Tensor) -> None:
    """Writes the matrix as float32 to out [rows, cols]."""

def linear(
    threads: ThreadPool, x: Tensor, parts: Sequence[WeightMatrix], out: Tensor, bias: Tensor | None = None
) -> None:
    """out = x @ concatenate(parts).T + bias; x [T, K], out [T, N]."""

def embedding(threads: ThreadPool, token_ids: Tensor, table: WeightMatrix, out: Tensor, scale: float = 1.0) -> None:
    """out[t] = scale * table[token_ids[t]]."""

def rms_norm(threads: ThreadPool, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """Normalises each group of len(weight) columns of x [T, C]."""

def add_rms_norm(
    threads: ThreadPool, residual: Tensor, delta: Tensor, weight: Tensor, eps: float, residual_out: Tensor, out: Tensor
) -> None:
    """residual_out = residual + delta; out = rms_norm(residual_out)."""

def add(threads: ThreadPool, a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a + b."""

def gated_activation(threads: ThreadPool, gate: Tensor, up: Tensor, activation: str, out: Tensor) -> None:
    """out = activation(gate) * up; silu, gelu_tanh or gelu_erf."""

def softcap(threads: ThreadPool, x: Tensor, cap: float, out: Tensor) -> None:
    """out = cap * tanh(x / cap)."""

def gather_rows(threads: ThreadPool, x: Tensor, rows: Tensor, out: Tensor) -> None:
    """out[i] = x[rows[i]]."""

def rope(
    threads: ThreadPool,
    x: Tensor,
    positions: Tensor,
    table: Tensor,
    head_dim: int,
    out: Tensor,
    interleaved: bool = False,
) -> None:
    """Rotates each head of x [T, heads * head_dim]; table [positions, rotary_dim] cosines then sines."""

def store_kv(threads: ThreadPool, k: Tensor, v: Tensor, slot_mapping: Tensor, cache: KvCache) -> None:
    """Writes rows of k and v [T, heads * head_dim] into their slots."""

def rope_store_kv(
    threads: ThreadPool,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor,
    slot_mapping: Tensor,
    cache: KvCache,
    q_out: Tensor,
    interleaved: bool = False,
) -> None:
    """rope of q and k, then store_kv."""

def copy_blocks(threads: ThreadPool, cache: KvCache, source: Tensor, destination: Tensor) -> None:
    """Copies blocks source[i] to destination[i]."""

def attention(
    threads: ThreadPool,
    q: Tensor,
    cache: KvCache,
    query_start: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    out: Tensor,
    num_heads: int,
    options: AttentionOptions,
    sinks: Tensor | None = None,
) -> None:
    """Causal attention of q [T, heads * head_dim] over the cache; block_tables [sequences, blocks]."""

def sample(threads: ThreadPool, logits: Tensor, rows: Sequence[SamplingRow], token_ids: Tensor) -> None:
    """token_ids[i] sampled from row i of logits float32 [rows, vocab]; -1 for a row that is no distribution."""

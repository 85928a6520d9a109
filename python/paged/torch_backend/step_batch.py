# SPDX-License-Identifier: Apache-2.0
"""One step's batch as the torch backend reads it: the arrays of `src/cpp/ops/batch_view.h`, all int32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The scheduled tokens of all sequences, one after the other. T tokens, N sequences, S logits rows."""

    token_ids: Int32s  # [T]
    positions: Int32s  # [T] absolute, inside the sequence
    slot_mapping: Int32s  # [T] block_id * block_size + offset; -1 stores nothing
    query_start: Int32s  # [N + 1] first token of each sequence
    seq_lens: Int32s  # [N] tokens in the cache after this step
    block_tables: Int32s  # [N, max blocks] block ids; what lies beyond seq_len is not read
    logits_rows: Int32s  # [S] indices into the scheduled tokens


def prompt_batch(token_ids: npt.ArrayLike, block_size: int) -> StepBatch:
    """A batch of one whole prompt in blocks 0, 1, ... that asks for the logits of every position."""
    tokens = np.asarray(token_ids, dtype=np.int32)
    if tokens.ndim != 1 or tokens.size == 0:
        raise ValueError(f"token_ids must be a list of at least one token id, got an array of shape {tokens.shape}")
    everything = np.arange(tokens.size, dtype=np.int32)
    num_blocks = -(-tokens.size // block_size)
    return StepBatch(
        token_ids=tokens,
        positions=everything,
        slot_mapping=everything,
        query_start=np.array([0, tokens.size], dtype=np.int32),
        seq_lens=np.array([tokens.size], dtype=np.int32),
        block_tables=np.arange(num_blocks, dtype=np.int32)[None, :],
        logits_rows=everything,
    )

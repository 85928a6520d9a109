# SPDX-License-Identifier: Apache-2.0
"""llama-cpp-python. One stream goes through its `Llama` class, the way its users call it.

That class runs one sequence at a time, so many requests go through the C functions it wraps: a batch of all running
sequences a step, filled up with prompt tokens, and the shared prefix copied between sequences. This is what llama.cpp's
own server does, and the best that the library offers from Python.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from worker import Engine, Options, serve

_STEP_TOKENS = 512


@dataclass
class _Sequence:
    """A request on its way: `pending` ids are not yet computed, `position` counts those that are."""

    seq_id: int
    pending: list[int]
    position: int
    wanted: int
    made: list[int] = field(default_factory=list)


class LlamaCpp:
    """One model, a context for single streams and, made on first use, one for many sequences over a unified cache."""

    def __init__(self, options: Options) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        self._options = options
        self._context: Any = None
        self._warmed: list[int] = []
        self.version = f"llama-cpp-python {llama_cpp.__version__}"
        self._llama: Any = llama_cpp.Llama(
            options.model,
            n_ctx=options.max_model_len,
            n_threads=options.threads,
            n_threads_batch=options.threads,
            verbose=False,
        )

    def single(self, prompt: list[int], max_tokens: int, on_tokens: Callable[[int], None]) -> None:
        for _ in islice(self._llama.generate(prompt, temp=0.0), max_tokens):
            on_tokens(1)

    def batch(self, prompts: list[list[int]], max_tokens: list[int], prefix_len: int) -> list[list[int]]:
        if len(prompts) == 1:
            return [list(islice(self._llama.generate(prompts[0], temp=0.0), max_tokens[0]))]
        memory = self._memory()
        sequences = []
        for seq_id, (prompt, wanted) in enumerate(zip(prompts, max_tokens, strict=True), start=1):
            start = prefix_len if prompt[:prefix_len] == self._warmed else 0
            if start:
                self._api.llama_memory_seq_cp(memory, 0, seq_id, 0, start)
            sequences.append(_Sequence(seq_id, prompt[start:], start, wanted))
        while any(len(sequence.made) < sequence.wanted for sequence in sequences):
            self._step(sequences)
        for sequence in sequences:
            self._api.llama_memory_seq_rm(memory, sequence.seq_id, -1, -1)
        return [sequence.made for sequence in sequences]

    def warm_prefix(self, prefix: list[int]) -> None:
        self._api.llama_memory_clear(self._memory(), True)
        sequence = _Sequence(0, list(prefix), 0, wanted=1)
        while not sequence.made:
            self._step([sequence])
        self._warmed = prefix

    def _memory(self) -> Any:
        if self._context is None:
            params = self._api.llama_context_default_params()
            params.n_ctx = self._options.max_tokens_in_flight
            params.n_seq_max = self._options.max_sequences + 1
            params.n_batch = params.n_ubatch = _STEP_TOKENS
            params.n_threads = params.n_threads_batch = self._options.threads
            params.kv_unified = True
            self._context = self._api.llama_init_from_model(self._llama.model, params)
            self._batch = self._api.llama_batch_init(_STEP_TOKENS, 0, 1)
        return self._api.llama_get_memory(self._context)

    def _step(self, sequences: list[_Sequence]) -> None:
        """Runs one batch: every decoding sequence's token first, then prompt tokens while there is room."""
        batch = self._batch
        batch.n_tokens = 0
        sampling: list[tuple[_Sequence, int]] = []
        active = [sequence for sequence in sequences if len(sequence.made) < sequence.wanted]
        for sequence in sorted(active, key=lambda sequence: len(sequence.pending) > 1):
            room = _STEP_TOKENS - batch.n_tokens
            tokens, sequence.pending = sequence.pending[:room], sequence.pending[room:]
            for token in tokens:
                self._add(token, sequence)
            if tokens and not sequence.pending:
                batch.logits[batch.n_tokens - 1] = True
                sampling.append((sequence, batch.n_tokens - 1))
        if code := self._api.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {code} for {batch.n_tokens} tokens")
        for sequence, index in sampling:
            token = self._argmax(index)
            sequence.made.append(token)
            sequence.pending.append(token)

    def _add(self, token: int, sequence: _Sequence) -> None:
        batch = self._batch
        index = batch.n_tokens
        batch.token[index] = token
        batch.pos[index] = sequence.position
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = sequence.seq_id
        batch.logits[index] = False
        batch.n_tokens += 1
        sequence.position += 1

    def _argmax(self, index: int) -> int:
        import numpy as np

        logits = self._api.llama_get_logits_ith(self._context, index)
        vocabulary = (ctypes.c_float * self._llama.n_vocab()).from_address(ctypes.addressof(logits.contents))
        return int(np.frombuffer(vocabulary, dtype=np.float32).argmax())


def load(options: Options) -> tuple[Engine, float]:
    start = time.perf_counter()
    import llama_cpp  # noqa: F401

    import_seconds = time.perf_counter() - start
    return LlamaCpp(options), import_seconds


if __name__ == "__main__":
    serve(load)
